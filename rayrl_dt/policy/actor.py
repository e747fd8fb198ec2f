"""Acting in N environments at once: context, target rule, one batched forward."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from rayrl_dt.data.returns import next_return_to_go
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.plan import ActingPlan
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.policy.refiner import Refiner
from rayrl_dt.types import ACTION_LIMIT

__all__ = ["VectorActor"]

Array = np.ndarray[Any, Any]


class VectorActor:
    """Acts for `slots` environments, each with its own target return.

    Args:
        model: the policy network; put into eval mode.
        slots: N.
        sample: generator for actions drawn from the softmax or the squashed Gaussian; None takes the most likely
            action, or tanh(mean).
        noise: standard deviation of the normal noise on continuous actions, in units of [-1, 1]; needs `sample`.
        context_length: steps to act on, at most the model's K; None for the policy's own choice.
        precision: "fp32" or "bf16" (autocast).

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
    ) -> None:
        spec = model.spec
        self.model = model.eval()
        self.slots = slots
        self.sample = sample
        self.noise = noise
        self.precision = precision
        self.refiner: Refiner | None = None
        space = spec.observation_space
        self._context = ContextBuffer(
            slots,
            min(context_length or spec.acts_on, spec.model.context_length),
            observation_shape=space.shape or (),
            observation_dtype=np.uint8 if space.dtype == np.uint8 else np.float32,
            action_shape=() if spec.discrete else (spec.action_size,),
            action_dtype=np.int64 if spec.discrete else np.float32,
        )
        self._return_to_go = np.zeros(slots, np.float64)
        self._timestep = np.zeros(slots, np.int64)
        self._delayed = spec.model.target_rule == "constant"
        self._predicted = spec.model.target_rule == "predicted"
        self._plan: ActingPlan | None = None
        self._actions = np.zeros(
            (slots,) if spec.discrete else (slots, spec.action_size),
            spec.action_space.dtype,
        )

    @property
    def returns_to_go(self) -> Array:
        """`(N,)` raw return-to-go of each slot at its newest step.

        Where the policy predicts them, 0 for a slot that was not active.
        """
        return self._return_to_go

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
            self._plan = acting_plan(self.model, self._context, self.precision)
        outputs = self._plan.outputs(rows)
        if self._predicted:
            self._return_to_go = self._context.window().returns_to_go[:, -1, 0].astype(np.float64)
        if self.noise > 0:
            outputs = outputs.float()
            noise = torch.randn(outputs.shape, generator=self.sample).to(outputs.device)
            outputs = (outputs + self.noise * noise).clamp(-ACTION_LIMIT, ACTION_LIMIT)
        refine = None
        if self.refiner is not None:
            seen = observations if rows is None else observations[rows]
            draw = partial(self.model.to_model_units, outputs) if self.model.spec.gaussian else None
            refine = partial(self.refiner, seen, draw=draw)
        actions = self.model.to_env_actions(outputs, sample=self.sample, refine=refine)
        if rows is None:
            self._actions = actions
        else:
            self._actions = self._actions.copy()
            self._actions[rows] = actions
        self._context.set_actions(self._actions)
        return self._actions
