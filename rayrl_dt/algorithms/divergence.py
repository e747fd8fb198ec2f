"""Numbers that no training comes back from are found before an optimizer follows them, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rayrl_dt import devices
from rayrl_dt.errors import TrainingDiverged

__all__ = ["DivergenceGuard"]

_STEPS_BETWEEN_READS = 100


class _Check(NamedTuple):
    """The arguments of `DivergenceGuard.check`."""

    fine: Tensor
    values: Sequence[Tensor]
    message: Callable[..., str]

    def error(self) -> TrainingDiverged:
        """Return what a failed check raises."""
        return TrainingDiverged(self.message(*map(float, self.values)))


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
        self._unread: list[_Check] = []
        self._failed = torch.zeros((), dtype=torch.bool, device=device)  # any so far
        self._steps = 0

    def check(self, fine: Tensor, values: Sequence[Tensor], message: Callable[..., str]) -> None:
        """Refuse to go on where something is not fine.

        Args:
            fine: `()` bool.
            values: numbers `()` for the message.
            message: called with the values as floats; says what is wrong.

        Raises:
            TrainingDiverged: it is not fine, and reads are free.
        """
        found = _Check(fine, values, message)
        if self._reads_are_free:
            if not bool(fine):
                raise found.error()
            return
        self._failed = self._failed | ~fine
        self._unread.append(found)

    def hold(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Have optimizers stand still in their next step if a check has failed.

        They are told as torch's gradient scaler tells them; fused ones and `Lamb` listen.
        """
        if self._reads_are_free:
            return
        found = self._failed.float()
        for optimizer in optimizers:
            # As the scaler does; `Optimizer` itself declares neither of the two.
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
        if bool(self._failed):
            raise next(found for found in self._unread if not bool(found.fine)).error()
        self._unread.clear()
