"""The RLlib module of conservative Q-learning: a Gaussian policy, twin critics, their slow copy, a temperature."""

from __future__ import annotations

import copy
import math

import torch
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from torch import nn

from rayrl_dt.algorithms.critic_module import CRITIC_HIDDEN
from rayrl_dt.algorithms.module import INIT_SEED, SequenceRLModule
from rayrl_dt.algorithms.online.module import INITIAL_TEMPERATURE
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.seeding import seeded_weights

__all__ = ["CQLRLModule"]


class CQLRLModule(SequenceRLModule, InferenceOnlyAPI):
    """Adds what only a learner needs; env runners hold the policy alone.

    The temperature is a weight like any other, so checkpoints keep it.

    Attributes:
        critic: twin Q networks.
        target_critic: their slow copy.
        log_temperature: logarithm of the entropy's weight.
    """

    def setup(self) -> None:
        """Build the networks with weights that are a function of the run's seed alone."""
        super().setup()
        if self.inference_only:
            return
        with seeded_weights(self.model_config.get(INIT_SEED) or 0, "init-critic"):
            self.critic = TwinCritic(self.model.spec, hidden=self.model_config[CRITIC_HIDDEN])
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.model_config[INITIAL_TEMPERATURE])))

    @torch.no_grad()
    def move_target(self, polyak: float) -> None:
        """Move the slow copy by `polyak` of the way to the critics."""
        torch._foreach_lerp_([*self.target_critic.parameters()], [*self.critic.parameters()], polyak)

    def get_non_inference_attributes(self) -> list[str]:
        """Names what env runners do without."""
        return ["critic", "target_critic", "log_temperature"]
