"""The RLlib module of online finetuning: the policy network, its critic, and copies that are slow or stand still."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from torch import nn

from rayrl_dt.algorithms.module import INIT_SEED, SequenceRLModule
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.critics.slow_copy import SlowCopy
from rayrl_dt.seeding import seeded_weights

__all__ = ["CRITIC", "FROZEN_MODEL", "INITIAL_TEMPERATURE", "OnlineRLModule"]

CRITIC = "critic"
FROZEN_MODEL = "frozen_model"
INITIAL_TEMPERATURE = "initial_temperature"

Network = TypeVar("Network", bound=nn.Module)


class OnlineRLModule(SequenceRLModule, InferenceOnlyAPI):
    """Adds what only a learner needs; env runners hold the policy alone.

    Attributes:
        critic: twin Q networks.
        target_model: slow copy of the policy, always in eval mode.
        target_critic: slow copy of the critic.
        frozen_model: the policy that finetuning began with, in eval mode; only where actions are held near its own.
        log_temperature: logarithm of the entropy's weight (head "gaussian").
    """

    def setup(self) -> None:
        """Build the networks with weights that are a function of the run's seed alone."""
        super().setup()
        if self.inference_only:
            return
        initial = math.log(self.model_config[INITIAL_TEMPERATURE])
        self.log_temperature = nn.Parameter(torch.tensor(initial))
        if self.model_config[FROZEN_MODEL]:
            self.frozen_model = _copy(self.model)
        if self.model_config[CRITIC] is None:
            return
        with seeded_weights(self.model_config.get(INIT_SEED) or 0, "init-critic"):
            self.critic = TwinCritic(self.model.spec, **self.model_config[CRITIC])
        self.target_model = _copy(self.model)
        self.target_critic = _copy(self.critic)

    @property
    def has_critic(self) -> bool:
        """Whether there is a critic here."""
        return not self.inference_only and self.model_config[CRITIC] is not None

    @property
    def holds_actions(self) -> bool:
        """Whether the policy that finetuning began with is kept here."""
        return not self.inference_only and bool(self.model_config[FROZEN_MODEL])

    def train(self, mode: bool = True) -> OnlineRLModule:
        """Set the mode of the policy; its copies act without dropout whatever it is."""
        super().train(mode)
        if self.holds_actions:
            self.frozen_model.eval()
        if self.has_critic:
            self.target_model.eval()
            self.target_critic.eval()
        return self

    def begin_finetuning(self) -> None:
        """Make all copies equal to what they are copies of."""
        if self.has_critic:
            self.copy_targets()
        if self.holds_actions:
            self.frozen_model.load_state_dict(self.model.state_dict())

    def copy_targets(self) -> None:
        """Make the targets equal to what they follow, as at the start of finetuning."""
        self.target_model.load_state_dict(self.model.state_dict())
        self.target_critic.load_state_dict(self.critic.state_dict())

    def begin_training(self) -> None:
        """Prepare the weights, where they are to stay, for moving the targets."""
        pairs = (self.target_model, self.model), (self.target_critic, self.critic)
        self._slow_copies = [SlowCopy(target, source) for target, source in pairs]

    def move_targets(self, polyak: float) -> None:
        """Move the targets by `polyak` of the way to what they follow."""
        for copied in self._slow_copies:
            copied.move(polyak)

    def get_non_inference_attributes(self) -> list[str]:
        """Names what env runners do without."""
        return ["critic", "target_model", "target_critic", "frozen_model", "log_temperature"]


def _copy(network: Network) -> Network:
    """Return a copy that never trains."""
    return copy.deepcopy(network).requires_grad_(False).eval()
