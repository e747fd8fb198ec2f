"""A learner that fits its data and follows an RL gradient: one batch is a step of each."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rayrl_dt import precision
from rayrl_dt.algorithms.multi_loss_learner import MultiLossLearner
from rayrl_dt.objectives.gradient import Batch, RLGradient, Trained
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.objective import BC_LOSS

__all__ = ["RLGradientLearner"]


class RLGradientLearner(MultiLossLearner):
    """Takes the gradient's own steps, and every so often one of the policy.

    Attributes:
        rl_gradient: the config's.
    """

    rl_gradient: RLGradient

    def build(self) -> None:
        """Build module and optimizers."""
        self.rl_gradient = self.config.gradient
        super().build()

    def _trained(self) -> Iterable[Trained]:
        return self.rl_gradient.trained(self.networks)

    def _take_step(self, batch: Batch) -> None:
        self.rl_gradient.critic_step(self, batch)
        if self._phase_step % self.rl_gradient.settings.actor_interval == 0:
            self._policy_step(batch)
            self.rl_gradient.policy_moved(self.networks)

    @property
    def online(self) -> bool:
        """Whether pretraining is over; here there is none."""
        return True

    @property
    def _phase_step(self) -> int:
        """The gradient steps of this phase; its first one moves the policy."""
        return self.gradient_step

    def _policy_step(self, batch: Batch) -> None:
        networks = self.networks
        # Critics have seen the windows whole.
        window = batch.window = networks.model.dropping_returns(batch.window)
        returns = self.rl_gradient.asked_returns(networks, batch, online=self.online)
        with precision.autocast(self.device, networks.precision):
            if returns is None:
                outputs = networks.model(window)  # (B, K, O)
            else:
                every = torch.cat([window.returns_to_go[None], returns])  # (1 + M, B, K, 1)
                outputs, batch.asked = networks.model.outputs_for(window, every).tensor_split([1])
                outputs = outputs[0]
        weights = self.rl_gradient.imitation_weights(outputs, networks, batch, online=self.online)
        fit = imitation_loss(networks.model, outputs, window, weights)
        self.log(BC_LOSS, fit.detach())
        loss = self._policy_loss(fit, outputs, batch)
        for name, value in batch.logged.items():
            self.log(name, value)
        self.descend_policy(loss)

    def _policy_loss(self, fit: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        """Return what the policy descends; see `RLGradient.policy_loss`."""
        return self.rl_gradient.policy_loss(fit, outputs, self.networks, batch, online=self.online)
