"""The RLlib module of a policy with company: a critic, copies that are slow or stand still, a temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.utils.numpy import convert_to_numpy
from torch import nn

from rayrl_dt.algorithms.module import INIT_SEED, SequenceRLModule
from rayrl_dt.critics.companions import CRITICS, Companions, still_copy
from rayrl_dt.critics.networks import IQLCritic, TwinCritic
from rayrl_dt.critics.slow_copy import OneVector, SlowCopy
from rayrl_dt.seeding import seeded_weights

__all__ = ["COMPANIONS", "CriticRLModule"]

COMPANIONS = "companions"
"""Key of the model config: `Companions` as a dict."""


class CriticRLModule(SequenceRLModule, InferenceOnlyAPI):
    """Adds what only a learner needs, as `Companions` says; env runners hold the policy alone.

    All of it is weights, so checkpoints keep it and need nothing but themselves. Where an average of the policy is what
    is evaluated, runners get it under the policy's name, and the policy itself to collect with.

    Attributes:
        companions: which of the following there are.
        critic: one of `CRITICS`.
        target_model: slow copy of the policy, always in eval mode.
        target_critic: slow copy of the critic.
        averaged_model: average of the policy's weights, in eval mode.
        frozen_model: the policy that finetuning began with, in eval mode.
        log_temperature: logarithm of the entropy's weight.
    """

    critic: TwinCritic | IQLCritic

    def setup(self) -> None:
        """Build the networks with weights that are a function of the run's seed alone."""
        super().setup()
        self.companions = Companions() if self.inference_only else Companions(**self.model_config[COMPANIONS])
        wanted = self.companions
        if wanted.critic is not None:
            with seeded_weights(self.model_config.get(INIT_SEED) or 0, "init-critic"):
                self.critic = CRITICS[wanted.critic](self.model.spec, **wanted.shape)
            if not wanted.critic_trains:
                self.critic.requires_grad_(False)
        for copied, name in self._copies().items():
            setattr(self, copied, still_copy(getattr(self, name)))
        if wanted.frozen_model:
            self.frozen_model = still_copy(self.model)
        if wanted.initial_temperature is not None:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(wanted.initial_temperature)))

    @property
    def judge(self) -> TwinCritic | None:
        """The twin Q that a training objective may ask; None without a critic."""
        if self.companions.critic is None:
            return None
        return self.critic.q if isinstance(self.critic, IQLCritic) else self.critic

    def train(self, mode: bool = True) -> CriticRLModule:
        """Set the mode of the policy; its copies act without dropout whatever it is."""
        super().train(mode)
        for copied in self._copies():
            getattr(self, copied).eval()
        if self.companions.frozen_model:
            self.frozen_model.eval()
        return self

    def begin_training(self) -> None:
        """Prepare the weights, where they are to stay, for moving what follows them."""
        copies = self._copies()
        followed = {name: OneVector(getattr(self, name).parameters()) for name in set(copies.values())}
        self._moving = {
            copied: SlowCopy(getattr(self, copied), followed[name]) for copied, name in copies.items()
        }

    def begin_finetuning(self) -> None:
        """Make all copies equal to what they are copies of."""
        for copied, name in self._copies().items():
            getattr(self, copied).load_state_dict(getattr(self, name).state_dict())
        if self.companions.frozen_model:
            self.frozen_model.load_state_dict(self.model.state_dict())

    def average(self, share: float) -> None:
        """Move the average by `share` of the way to the policy."""
        self._moving["averaged_model"].move(share)

    def move_targets(self, polyak: float, *, only: str | None = None) -> None:
        """Move the targets by `polyak` of the way to what they follow; `only` names one, such as "critic"."""
        for name in self.companions.slow:
            if only in (None, name):
                self._moving[f"target_{name}"].move(polyak)

    def get_state(self, *args: Any, inference_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Return the weights; those for inference hold what is evaluated under the policy's name."""
        state: dict[str, Any] = super().get_state(*args, inference_only=inference_only, **kwargs)
        if inference_only and self.companions.averaged:
            averaged = convert_to_numpy(self.averaged_model.state_dict())
            state.update({f"model.{name}": value for name, value in averaged.items()})
        return state

    def get_non_inference_attributes(self) -> list[str]:
        """Names what env runners do without."""
        return [
            "critic",
            "target_model",
            "target_critic",
            "averaged_model",
            "frozen_model",
            "log_temperature",
        ]

    def _copies(self) -> dict[str, str]:
        """Return the names of the copies that move, each with that of what it follows."""
        averaged = {"averaged_model": "model"} if self.companions.averaged else {}
        return {f"target_{name}": name for name in self.companions.slow} | averaged
