"""Acting in N environments at once: context, target rule, one batched forward.

Shape legend: N slots, n slots that need an action, O outputs, A action dimensions; `*obs` observation shape. Discrete
actions have no axis A.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.data.returns import next_return_to_go
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.plan import ActingPlan
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.policy.refiner import Asked, Refiner
from rayrl_dt.types import ACTION_LIMIT

__all__ = ["VectorActor"]

Array = np.ndarray[Any, Any]


class VectorActor:
    """Acts for `slots` environments, each with its own target return.

    Args:
        model: the policy network; put into eval mode.
        slots: N.
        sample: generator for actions drawn from the policy's law, if it has one; None takes its mode.
        noise: standard deviation of the normal noise on continuous actions, in units of [-1, 1]; needs `sample`.
        context_length: steps to act on, at most the model's K; None for the policy's own choice.
        precision: "fp32" or "bf16" (autocast).
        guidance: how strongly the policy follows its returns; None for its own choice.

    Attributes:
        refiner: improves the actions of the policy before they are taken and remembered; None leaves them. Assign to
            change.
    """

    def __init__(
        self,
        model: SequenceModel,
        slots: int,
        *,
        sample: torch.Generator | None = None,
        noise: float = 0.0,
        context_length: int | None = None,
        precision: str = "fp32",
        guidance: float | None = None,
    ) -> None:
        spec = model.spec
        self.model = model.eval()
        self.slots = slots
        self.sample = sample
        self.noise = noise
        self.precision = precision
        self.refiner: Refiner | None = None
        self._context = ContextBuffer.of(
            spec, slots, min(context_length or spec.acts_on, spec.model.context_length)
        )
        self._return_to_go = np.zeros(slots, np.float64)
        self._timestep = np.zeros(slots, np.int64)
        self._delayed = spec.model.target_rule == "constant"
        self._predicted = spec.model.target_rule == "predicted"
        self._plan: ActingPlan | None = None
        self._guidance = spec.guidance if guidance is None else guidance
        self._actions = np.zeros((slots, *spec.head.shape), spec.action_space.dtype)

    @property
    def returns_to_go(self) -> Array:
        """`(N,)` raw return-to-go of each slot at its newest step.

        Where the policy predicts them, 0 for a slot that was not active.
        """
        return self._return_to_go

    def guide(self, guidance: float) -> None:
        """Follow the returns so strongly from now on; only policies with return dropout can do other than 1."""
        if guidance != self._guidance:
            self._guidance, self._plan = guidance, None

    def act(
        self,
        observations: Array,
        rewards: Array,
        starting: Array,
        targets: Array,
        active: Array | None = None,
    ) -> Array:
        """Take the newest observations and return the actions to execute.

        Args:
            observations: `(N, *obs)`.
            rewards: `(N,)` raw rewards that came with the observations; ignored where `starting`.
            starting: `(N,)` bool, True where the observation is the first of an episode.
            targets: `(N,)` raw target return of the episodes that start; ignored where the policy predicts its own.
            active: `(N,)` bool, the slots that need an action; None for all. Others get their last action.

        Returns:
            `(N, A)` or `(N,)` actions in environment units.

        Raises:
            UserError: they, or what the policy says of them, are NaN or infinite. The step was taken nevertheless: what
                follows from it means nothing before the next episode.
        """
        if starting.any():
            self._context.clear(starting)
            if self._plan is not None:
                self._plan.clear(starting)
        self._return_to_go = np.where(
            starting, targets, next_return_to_go(self._return_to_go, rewards, delayed=self._delayed)
        )
        if self._predicted:
            # No trace of the target; the plan fills in the prediction.
            self._return_to_go = np.zeros(self.slots)
        self._timestep = np.where(starting, 0, self._timestep + 1)
        self._context.append(self._return_to_go, observations, self._timestep)
        rows = None if active is None or active.all() else np.flatnonzero(active)
        if rows is not None and len(rows) == 0:
            return self._actions
        if self._plan is None or not self._plan.holds():
            self._plan = self._new_plan()
        outputs = self._plan.outputs(rows)  # (n, O)
        if self._predicted:
            self._return_to_go = self._context.window().returns_to_go[:, -1, 0].astype(np.float64)
        chosen = self._choose(outputs, observations, rows)
        actions = self.model.to_env_actions(chosen)
        if not np.isfinite(actions).all():
            raise _not_finite()
        if rows is None:
            self._actions = actions
        else:
            self._actions = self._actions.copy()
            self._actions[rows] = actions
        self._context.set_actions(self._actions)
        return self._actions

    def took(self, actions: Array) -> None:
        """Say what was really done in each slot, `(N, A)` or `(N,)`, where it was not what `act` returned."""
        self._context.set_actions(actions)

    def _new_plan(self) -> ActingPlan:
        return acting_plan(self.model, self._context, self.precision, guidance=self._guidance)

    def _choose(self, outputs: Tensor, observations: Array, rows: Array | None) -> Tensor:
        """Return the actions to take, `(n, A)` or `(n,)` in model units, for outputs `(n, O)` of some slots."""
        # The mode of logits that are NaN would be an action like any other.
        if not bool(torch.isfinite(outputs).all()):
            raise _not_finite()
        head = self.model.spec.head
        actions = head.choose(outputs, self.sample)
        if self.noise > 0:
            noise = torch.randn(actions.shape, generator=self.sample).to(actions.device)
            actions = (actions.float() + self.noise * noise).clamp(-ACTION_LIMIT, ACTION_LIMIT)
        if self.refiner is not None:
            draw = partial(head.sample, outputs) if head.stochastic else None
            plan, wanted = self._plan, slice(None) if rows is None else rows
            assert plan is not None
            asked = Asked(
                self._return_to_go[wanted], lambda shifts: head.mode(plan.outputs_for(shifts, rows)).float()
            )
            actions = self.refiner(observations[wanted], actions.float(), draw=draw, asked=asked)
        return actions


def _not_finite() -> UserError:
    return UserError(
        "the policy's actions became NaN or infinite: its weights, the observations or the target are out of bounds "
        "(float32); look at the observations and the target, or take an earlier checkpoint, and begin the episode anew"
    )
