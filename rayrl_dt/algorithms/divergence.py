"""Numbers that no training comes back from are found before an optimizer follows them, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rayrl_dt import devices
from rayrl_dt.errors import TrainingDiverged

__all__ = ["DivergenceGuard"]

_STEPS_BETWEEN_READS = 100


class DivergenceGuard:
    """Checks what a learner computes.

    Where reads are free (`rayrl_dt.devices`) a check that fails raises at once. Elsewhere it is kept on the device, and
    holds the optimizers from then on, so that the weights stay; the host reads what has failed first after every 100
    gradient steps, and at the end of an update.

    Args:
        device: of the learner.
    """

    def __init__(self, device: torch.device) -> None:
        self._reads_are_free = devices.reads_are_free(device)
        self._messages: list[Callable[..., str]] = []  # of all checks since the last read
        self._steps = 0
        # The first check that failed, by the place of its message, and what it saw.
        self._failed = torch.full((), -1, dtype=torch.int64, device=device)
        self._values = torch.zeros(2, device=device)

    def check(self, fine: Tensor, values: Sequence[Tensor], message: Callable[..., str]) -> None:
        """Refuse to go on where something is not fine.

        Args:
            fine: `()` bool.
            values: two numbers `()` for the message.
            message: called with the values; says what is wrong.

        Raises:
            TrainingDiverged: it is not fine, and reads are free.
        """
        if self._reads_are_free:
            if not bool(fine):
                raise TrainingDiverged(message(*map(float, values)))
            return
        first = ~fine & (self._failed < 0)
        self._failed = torch.where(first, len(self._messages), self._failed)
        self._values = torch.where(first, torch.stack(list(values)).float(), self._values)
        self._messages.append(message)

    def hold(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Have optimizers stand still in their next step if a check has failed.

        They are told as torch's gradient scaler tells them; fused ones and `Lamb` listen.
        """
        if self._reads_are_free:
            return
        found = (self._failed >= 0).float()
        for optimizer in optimizers:
            optimizer.grad_scale, optimizer.found_inf = None, found  # type: ignore[attr-defined]

    def stepped(self) -> None:
        """Count a gradient step; see `read`."""
        self._steps += 1
        if self._steps % _STEPS_BETWEEN_READS == 0:
            self.read()

    def read(self) -> None:
        """Read whether a check has failed.

        Raises:
            TrainingDiverged: one has; the message is that of the first.
        """
        if not self._messages:
            return
        failed, *values = torch.cat([self._failed[None].double(), self._values.double()]).tolist()
        if failed >= 0:
            raise TrainingDiverged(self._messages[int(failed)](*values))
        self._messages.clear()
