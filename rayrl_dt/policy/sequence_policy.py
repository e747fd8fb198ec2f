"""A trained policy for one environment, without Ray: load, reset, act."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import ActionGradient, ActionRefiner
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.seeding import torch_generator

__all__ = ["SequencePolicy"]

Array = np.ndarray[Any, Any]


class SequencePolicy:
    """Acts in one environment and keeps the context itself.

    Example:
        >>> policy = SequencePolicy.load("runs/hopper-dt")  # doctest: +SKIP
        >>> policy.reset(target_return=3600.0)  # doctest: +SKIP
        >>> action = policy.act(observation)  # then policy.act(observation, reward)  # doctest: +SKIP

    Args:
        model: the policy network.
        sample_seed: draw actions from the softmax, or from a Gaussian head, with this seed; None takes the
            most likely.
        refiner: improves each action with a critic before it is taken; None leaves it.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        sample_seed: int | None = None,
        refiner: ActionRefiner | None = None,
    ) -> None:
        self.model = model
        sample = None if sample_seed is None else torch_generator(sample_seed, "policy-actions")
        self._actor = VectorActor(model, 1, sample=sample)
        self._actor.refiner = refiner
        self._target: float | None = None
        self._starting = True

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        sample_seed: int | None = None,
        action_gradient: ActionGradient | None = None,
    ) -> SequencePolicy:
        """Loads a policy bundle, or the newest one of a run folder or checkpoint.

        Args:
            path: where it is.
            sample_seed: as for the class.
            action_gradient: refine each action with the bundle's critic (`rayrl-dt critic` trains it).

        Raises:
            UserError: there is no whole bundle at `path`, or no critic for its action gradient.
        """
        from rayrl_dt.interop.bundle import load_model  # interop stands above policy
        from rayrl_dt.interop.critics import load_refiner

        model = load_model(path)
        refiner = None if action_gradient is None else load_refiner(path, model.spec, action_gradient)
        return cls(model, sample_seed=sample_seed, refiner=refiner)

    @property
    def spec(self) -> PolicySpec:
        """What the policy is made of: spaces, scales, context length, training data."""
        return self.model.spec

    def reset(self, target_return: float | None = None) -> None:
        """Starts an episode.

        Args:
            target_return: raw return to ask for; None for the 95th percentile of the training data, and for a policy
                that predicts its own returns.

        Raises:
            UserError: there is no such percentile, the target is not finite, or the policy takes none.
        """
        if self.spec.model.target_rule == "predicted":
            if target_return is not None:
                raise UserError(
                    f"target_return is {target_return}, but this policy predicts its own returns; call reset() "
                    "without it"
                )
            target_return = 0.0
        if target_return is None:
            if "p95" not in self.spec.data_returns:
                raise UserError(
                    "the policy does not know its data's returns; give target_return (raw return)"
                )
            target_return = self.spec.data_returns["p95"]
        target = float(target_return)
        if not np.isfinite(target):
            raise UserError(f"target_return is {target}; it must be a finite number (raw return)")
        self._target = target
        self._starting = True

    def act(self, observation: Any, reward: float | None = None) -> Any:
        """Returns the action for `observation`.

        Args:
            observation: `(*obs)` as the environment returned it.
            reward: raw reward that came with it; None only for the first observation of an episode.

        Raises:
            UserError: `reset` was not called, the shape is wrong, or the reward is missing.
        """
        if self._target is None:
            raise UserError("call reset(target_return=...) before act()")
        values = np.asarray(observation)
        shape = self.spec.observation_space.shape
        if values.shape != shape:
            raise UserError(f"the observation has shape {values.shape}, the policy was trained on {shape}")
        if reward is None and not self._starting:
            raise UserError("act() needs the reward of the step before: policy.act(observation, reward)")
        actions = self._actor.act(
            values[None],
            np.array([0.0 if reward is None else float(reward)]),
            np.array([self._starting]),
            np.array([self._target]),
        )
        self._starting = False
        action = actions[0]
        return int(action) if self.spec.discrete else np.array(action)
