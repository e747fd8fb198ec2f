"""Acting in many episodes that each go at their own pace: whichever ask are answered, in one batched forward.

A `VectorActor` moves all its slots on at once. Here a part of them is taken out, moved on, and put back; the others do
not notice.

Shape legend: N slots, n slots that ask, O outputs, A action dimensions; `*obs` observation shape. Discrete actions have
no axis A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.plan import ActingPlan
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.context import ContextBuffer

__all__ = ["OwnPaceActor"]

Array = np.ndarray[Any, Any]


class OwnPaceActor(VectorActor):
    """Acts for the slots that ask, each as if it were alone, up to rounding.

    It is made as a `VectorActor` is. Windows are looked at whole: what is kept of steps elsewhere needs slots that all
    move at once.
    """

    def __init__(self, model: SequenceModel, slots: int, **options: Any) -> None:
        super().__init__(model, slots, **options)
        # Nothing is appended here: there may be many slots of images, of which few are ever used.
        self._context = ContextBuffer.of(model.spec, slots, self._context.context_length, slack=0)

    def act_for(
        self,
        slots: Array,
        observations: Array,
        rewards: Array,
        starting: Array,
        targets: Array,
        draws: Sequence[torch.Generator | None],
    ) -> tuple[Array, Array]:
        """Take the newest observations of some slots, and return their actions.

        Args:
            slots: `(n,)` indices, each at most once.
            observations: `(n, *obs)`.
            rewards: `(n,)` raw; ignored where `starting`.
            starting: `(n,)` bool, True where the observation is the first of an episode.
            targets: `(n,)` raw target return of the episodes that start.
            draws: n generators for actions drawn from the policy's law; None for its mode.

        Returns:
            `(n, A)` or `(n,)` actions in environment units, and `(n,)` bool, False where the policy's outputs were not
            finite: such a slot stays as it was, and its action means nothing.
        """
        part = _Part(self, slots, draws)
        actions = part.act(observations, rewards, starting, targets)
        done = slots[part.finite]
        kept = np.flatnonzero(part.finite)
        self._context.put(done, part._context.part(kept))
        self._return_to_go[done] = part._return_to_go[kept]
        self._timestep[done] = part._timestep[kept]
        return actions, part.finite


class _Part(VectorActor):
    """Some slots of another actor, moved on without it.

    Attributes:
        finite: `(n,)` bool, the slots whose outputs were finite when it last acted.
    """

    def __init__(self, whole: OwnPaceActor, slots: Array, draws: Sequence[torch.Generator | None]) -> None:
        self.__dict__.update(whole.__dict__)
        self.slots = len(slots)
        self.finite = np.ones(len(slots), bool)
        self._draws = draws
        self._plan = None
        self._context = whole._context.part(slots)
        self._return_to_go = whole._return_to_go[slots]
        self._timestep = whole._timestep[slots]

    def _new_plan(self) -> ActingPlan:
        return acting_plan(self.model, self._context, self.precision, guidance=self._guidance, keeps=False)

    def _choose(self, outputs: Tensor, observations: Array, rows: Array | None) -> Tensor:
        """Return the actions, each drawn with its slot's own generator; see `VectorActor`."""
        finite = torch.isfinite(outputs).flatten(1).all(dim=1)  # (n, O) -> (n,)
        self.finite = finite.cpu().numpy()
        # One that asks the impossible must not take the others with it.
        outputs = torch.where(finite[:, None], outputs, torch.zeros_like(outputs))
        head = self.model.spec.head
        actions = head.mode(outputs)
        for row, draw in enumerate(self._draws):
            if draw is not None and finite[row]:
                actions[row] = head.sample(outputs[row : row + 1], 1, draw)[0, 0]
        return actions
