"""The learner of online finetuning: the steps of its RL gradient, on logged data first and then on the replay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.multi_loss_learner import ENTROPY, TEMPERATURE
from rayrl_dt.algorithms.online.lamb import Lamb
from rayrl_dt.algorithms.policy_optimizer import adamw
from rayrl_dt.algorithms.rl_gradient_learner import RLGradientLearner
from rayrl_dt.objectives.gradient import Batch, Trained
from rayrl_dt.objectives.objective import BC_LOSS
from rayrl_dt.objectives.rl_gradients import logged

__all__ = ["OnlineLearner", "online_metrics"]

ACTION_DISTANCE = "action_distance"


class OnlineLearner(RLGradientLearner):
    """Adds the entropy of a Gaussian head, and holds actions near those that finetuning began with."""

    def _policy_optimizer(self, arguments: dict[str, Any]) -> torch.optim.Optimizer:
        if self.config.optimizer == "lamb":
            return Lamb(**arguments)
        return adamw(self.device, fused_on_cpu=False, **arguments)

    def _trained(self) -> Iterable[Trained]:
        yield from super()._trained()
        if self.networks.companions.initial_temperature is not None:
            yield Trained(TEMPERATURE, [self.networks.log_temperature], self.config.temperature_lr, 0.0)

    @property
    def online(self) -> bool:
        """Whether pretraining is over."""
        return self.gradient_step >= int(self.config.pretrain_steps)

    @property
    def _phase_step(self) -> int:
        return self.gradient_step - (self.config.pretrain_steps if self.online else 0)

    def _policy_steps(self, gradient_steps: int) -> int:
        """Return how many steps the policy takes in so many gradient steps, each phase beginning with one."""
        pretraining = min(gradient_steps, self.config.pretrain_steps)
        phases = pretraining, gradient_steps - pretraining
        return sum(math.ceil(steps / self.rl_gradient.settings.actor_interval) for steps in phases)

    def _take_step(self, batch: Batch) -> None:
        if self.gradient_step == self.config.pretrain_steps:
            self.networks.begin_finetuning()
        super()._take_step(batch)

    def _policy_step(self, batch: Batch) -> None:
        super()._policy_step(batch)
        if self.networks.companions.averaged:
            self.networks.average(self._way_to_the_policy())

    def _way_to_the_policy(self) -> float:
        """Return by how much of the way the average moves to the policy: all of it while pretraining."""
        steps = self._phase_step // self.rl_gradient.settings.actor_interval + 1
        return 1 / max(1.0, self.config.averaged_share * steps) if self.online else 1.0

    def _policy_loss(self, fit: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        config, networks = self.config, self.networks
        loss = fit * (config.bc_weight if self.online else 1.0)
        if networks.companions.initial_temperature is not None:
            loss = loss - self._weighted_entropy(self.rl_gradient.entropy_outputs(outputs, batch), batch)
        loss = self.rl_gradient.policy_loss(loss, outputs, networks, batch, online=self.online)
        if self.online and networks.companions.frozen_model:
            distance = self._action_distance(outputs, batch)
            loss = loss + config.action_regularization * distance
            self.log(ACTION_DISTANCE, distance.detach())
        return loss

    def _action_distance(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared distance to the actions of the policy that finetuning began with.

        Means over action dimensions, like the supervised loss (the paper sums over them); tanh(mean) for a Gaussian.
        """
        networks = self.networks
        with torch.no_grad(), precision.autocast(self.device, networks.precision):
            initial = networks.frozen_model(batch.window)
        mode = networks.model.spec.head.mode
        return losses.masked_mse(mode(outputs), mode(initial), batch.window.mask)

    def _weighted_entropy(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the policy's entropy times its temperature, which takes a step of its own towards entropy = -A."""
        entropy = self.networks.model.spec.head.entropy(outputs, batch.window.mask, batch.noise)
        return self._temperature_step(entropy) * entropy


def online_metrics() -> tuple[str, ...]:
    """Return what the learner logs beside the loss, where it applies."""
    return BC_LOSS, *logged(), ACTION_DISTANCE, ENTROPY, TEMPERATURE
