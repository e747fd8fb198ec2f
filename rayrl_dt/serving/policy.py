"""A trained policy for one environment, without Ray: load, reset, act."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import refiner_of
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.refinement import choose_refinement
from rayrl_dt.policy.refiner import Refiner
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.seeding import torch_generator
from rayrl_dt.types import scalar_rewards

__all__ = ["LARGEST", "SequencePolicy", "raw_target"]

Array = np.ndarray[Any, Any]

LARGEST = float(np.finfo(np.float32).max)
"""What is beyond it, a policy reads as infinite."""


class SequencePolicy:
    """Acts in one environment and keeps the context itself.

    Example:
        >>> policy = SequencePolicy.load("runs/hopper-dt")  # doctest: +SKIP
        >>> policy.reset(target_return=3600.0)  # doctest: +SKIP
        >>> action = policy.act(observation)  # then policy.act(observation, reward)  # doctest: +SKIP

    It acts as it was evaluated in training, unless it is told otherwise.

    Args:
        model: the policy network.
        sample_seed: draw actions from the softmax, or from a Gaussian head, with this seed; None leaves it to the
            selection of actions, whose draws have seed 0 then.
        context_length: steps that it sees, at most the model's K; None for the policy's own choice.
        action_selection: take the most likely actions ("mode") or draw discrete ones ("sample"); None for the policy's
            own choice.
        guidance: how strongly it follows its return, 1 as it was trained; None for the policy's own choice.
        refiner: improves each action with a critic before it is taken; None leaves it.

    Raises:
        UserError: the policy cannot act so, or there is a seed and nothing to draw.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        sample_seed: int | None = None,
        context_length: int | None = None,
        action_selection: str | None = None,
        guidance: float | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        if action_selection == "mode" and sample_seed is not None:
            raise UserError(
                f"sample_seed is {sample_seed}, and action_selection 'mode' draws nothing; remove one of them"
            )
        self.model = model
        acting = model.spec.acting(
            context_length=context_length, action_selection=action_selection, guidance=guidance
        )
        draws = sample_seed is not None or acting.action_selection == "sample"
        sample = torch_generator(sample_seed or 0, "policy-actions") if draws else None
        self._actor = VectorActor(
            model, 1, sample=sample, context_length=acting.acts_on, guidance=acting.guidance
        )
        self._actor.refiner = refiner
        self._flattening = model.spec.flattening
        self._layout = model.spec.action_layout
        self._target: float | None = None
        self._starting = True

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        sample_seed: int | None = None,
        context_length: int | None = None,
        action_selection: str | None = None,
        guidance: float | None = None,
        action_gradient: ActionGradient | None = None,
        sampled_actions: SampledActions | None = None,
        double_check: DoubleCheck | None = None,
    ) -> SequencePolicy:
        """Load a policy bundle, or the newest one of a run folder or checkpoint.

        Args:
            path: where it is.
            sample_seed: as for the class.
            context_length: as for the class.
            action_selection: as for the class.
            guidance: as for the class.
            action_gradient: refine each action with the bundle's critic (`rayrl-dt critic` trains it).
            sampled_actions: take the best of several actions, as that critic sees them, instead.
            double_check: take the action of one of several returns, as that critic chooses, instead; reads the policy's
                data.

        Raises:
            UserError: there is no whole bundle at `path`, or no critic to act with; several ways are asked for; the
                policy cannot act so.
        """
        bundle = Bundle.open(path)
        settings = choose_refinement(action_gradient, sampled_actions, double_check)
        refiner = None if settings is None else refiner_of(bundle, settings)
        return cls(
            bundle.model,
            sample_seed=sample_seed,
            context_length=context_length,
            action_selection=action_selection,
            guidance=guidance,
            refiner=refiner,
        )

    @property
    def spec(self) -> PolicySpec:
        """What the policy is made of: spaces, scales, context length, training data."""
        return self.model.spec

    def reset(self, target_return: float | None = None) -> None:
        """Start an episode.

        Args:
            target_return: raw return to ask for; None for the 95th percentile of the training data, and for a policy
                that predicts its own returns.

        Raises:
            UserError: there is no such percentile, the target is not finite in float32, or the policy takes none.
        """
        target = raw_target(self.spec, target_return)
        self._target = target
        self._starting = True

    def act(self, observation: Any, reward: float | None = None) -> Any:
        """Return the action for `observation`.

        Args:
            observation: as the environment returned it, or flattened already.
            reward: raw reward that came with it; None only for the first observation of an episode.

        Raises:
            UserError: `reset` was not called, the shape is wrong, the reward is missing, or a number is NaN or
                infinite in float32. The step is not taken then, and another one may be. Or the policy's own outputs
                are: that step was taken, and is in the way of the next ones until `reset`.
        """
        if self._target is None:
            raise UserError("call reset(target_return=...) before act()")
        values = self._flattening(observation)
        if reward is None and not self._starting:
            raise UserError("act() needs the reward of the step before: policy.act(observation, reward)")
        rewards = np.zeros(1) if reward is None else scalar_rewards(reward, 1).astype(np.float64)
        if not (np.isfinite(values).all() and (np.abs(rewards) <= LARGEST).all()):
            raise UserError(
                "the observation or its reward is NaN, infinite or beyond float32, and the step was not taken; look at "
                "what returned it"
            )
        actions = self._actor.act(
            values[None],
            rewards,
            np.array([self._starting]),
            np.array([self._target]),
        )
        self._starting = False
        return self._layout.restore(self.spec.head.single(actions[0]))


def raw_target(spec: PolicySpec, target_return: float | None) -> float:
    """Return the raw return that an episode asks for.

    Args:
        spec: of the policy.
        target_return: what is asked for; None for the 95th percentile of the training data, and for a policy that
            predicts its own returns, which gets 0.

    Raises:
        UserError: there is no such percentile, the target is not finite in float32, or the policy takes none.
    """
    if spec.model.target_rule == "predicted":
        if target_return is not None:
            raise UserError(
                f"target_return is {target_return}, but this policy predicts its own returns; leave it out"
            )
        return 0.0
    if target_return is None:
        if "p95" not in spec.data_returns:
            raise UserError("the policy does not know its data's returns; give target_return (raw return)")
        target_return = spec.data_returns["p95"]
    target = float(target_return)
    if not abs(target) <= LARGEST:
        raise UserError(
            f"target_return is {target}; it must be a finite number (raw return) of at most {LARGEST:.1e} in size"
        )
    return target
