"""The learner of online finetuning: twin critics first, then the delayed policy, then the targets.

One gradient step is one batch: a critic step, and at every `actor_interval`-th one a policy step and a step of the
targets (Yan et al. 2024, "Reinforcement Learning Gradients as Vitamin for Online Finetuning Decision Transformers",
section 4 and its code). Each step is a function of the weights, the batch and the step's number alone: the noise of
the critic's targets has a generator of its own, so a critic that is trained but not used (alpha 0) leaves the policy
bit for bit what it is without one.

Differences from the released code: losses are means over the real steps of a batch (the code's critic divides by
padding too); the policy's squared error is averaged over action dimensions, as in the code (the paper sums them, so
its alpha is smaller by that factor).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.learner import GRAD_NORM
from rayrl_dt.algorithms.multi_loss_learner import (
    CRITIC,
    CRITIC_LOSS,
    ENTROPY,
    POLICY,
    TEMPERATURE,
    MultiLossLearner,
)
from rayrl_dt.algorithms.online.lamb import Lamb
from rayrl_dt.algorithms.online.module import OnlineRLModule
from rayrl_dt.errors import TrainingDiverged
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.offline import BC_LOSS, Q_MEAN
from rayrl_dt.policy.acting.every_step import outputs_at_every_step
from rayrl_dt.seeding import torch_generator
from rayrl_dt.types import Window

__all__ = ["ONLINE_METRICS", "OnlineLearner"]

ACTION_DISTANCE = "action_distance"
ONLINE_METRICS = (BC_LOSS, CRITIC_LOSS, Q_MEAN, ACTION_DISTANCE, ENTROPY, TEMPERATURE)
"""What the learner logs beside the loss, where it applies."""

# No return is larger than max |r| / (1 - gamma); values this many times beyond it are not going to come back.
_EXPLODED = 10.0


class OnlineLearner(MultiLossLearner):
    """Fits the policy to the actions of its data and pushes it up the critic's gradient.

    Attributes:
        critic_weight_decay: AdamW's, on the critic.
    """

    critic_weight_decay = 0.01

    def build(self) -> None:
        """Build module and optimizers."""
        super().build()
        self._largest_reward = 0.0
        if self.online_module.has_critic:
            self.online_module.begin_training()

    @property
    def online_module(self) -> OnlineRLModule:
        """The module with its critic."""
        module = self.sequence_module
        assert isinstance(module, OnlineRLModule)
        return module

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register LAMB (or AdamW) for the policy, AdamW for a critic, Adam for a temperature."""
        module = self.module[module_id].unwrapped()
        fused = self.device.type == "cpu"
        decay = {"lr": config.lr, "weight_decay": config.weight_decay}
        policy = (Lamb if config.optimizer == "lamb" else torch.optim.AdamW)(
            module.model.parameters(), **decay
        )
        self._register(module_id, POLICY, policy, lr=config.lr)
        if module.has_critic:
            settings = {"lr": config.critic_lr, "weight_decay": self.critic_weight_decay, "fused": fused}
            critic = torch.optim.AdamW(module.critic.parameters(), **settings)
            self._register(module_id, CRITIC, critic, lr=config.critic_lr)
        if module.model.spec.head.target_entropy is not None:
            adam = torch.optim.Adam([module.log_temperature], lr=config.temperature_lr)
            self._register(module_id, TEMPERATURE, adam, lr=config.temperature_lr)

    def _policy_steps(self, gradient_steps: int) -> int:
        """Return how many steps the policy takes in so many gradient steps, each phase beginning with one."""
        pretraining = min(gradient_steps, self.config.pretrain_steps)
        phases = pretraining, gradient_steps - pretraining
        return sum(math.ceil(steps / self.config.actor_interval) for steps in phases)

    def _take_step(self, window: Window[Tensor]) -> None:
        config, module, step = self.config, self.online_module, self.gradient_step
        online = step >= config.pretrain_steps
        if step == config.pretrain_steps:
            module.begin_finetuning()
        phase_step = step - config.pretrain_steps if online else step
        noise = torch_generator(config.seed or 0, "online-noise", self._rank, step)
        if module.has_critic:
            self._critic_step(window, noise)
        if phase_step % config.actor_interval == 0:
            self._policy_step(window, noise, online=online)
            if module.has_critic:
                module.move_targets(config.polyak)

    def _critic_step(self, window: Window[Tensor], generator: torch.Generator) -> None:
        """One step of the twin critics towards r + gamma min Q'(s', a' of the target policy on the shifted window)."""
        config, module = self.config, self.online_module
        model, following = module.model, window.next
        assert following is not None and window.rewards is not None and window.terminated is not None
        rewards, dtype = window.rewards / config.reward_scale, precision.dtype_of(module.precision)
        with torch.no_grad():
            actions = outputs_at_every_step(module.target_model, following, module.precision).float()
            actions = losses.smooth_actions(actions, self._normal(actions, generator))
            observations = model.to_model_observations(following.observations)
            values = module.target_critic(observations, actions, dtype)
            target = losses.td3_target(rewards, window.terminated, values, gamma=config.gamma)
        inputs = model.inputs(window)
        values = module.critic(inputs.observations, inputs.actions, dtype)
        loss = losses.td3_critic_loss(values, target, window.mask)
        self._apply(CRITIC, loss, "the critic's loss", clip=None)
        mean = values.detach().where(window.mask, 0.0).sum() / (2 * window.mask.sum())
        self._check_values(mean, rewards.abs().max())
        self._add(CRITIC_LOSS, loss.detach())
        self._add(Q_MEAN, mean)

    def _check_values(self, mean: Tensor, reward: Tensor) -> None:
        """Raise TrainingDiverged, in all learners alike, if the critic's values left what any return can be."""
        if self.config.gamma == 1:
            return
        # One that stops alone leaves the others waiting for its next gradient.
        means, rewards = self._from_all_learners(torch.stack([mean, reward])).T
        found, self._largest_reward = float(means.mean()), max(self._largest_reward, float(rewards.max()))
        bound = _EXPLODED * max(self._largest_reward, 1e-6) / (1 - self.config.gamma)
        if not abs(found) <= bound:
            raise TrainingDiverged(
                f"the critic's values exploded: their mean is {found:.3g} at gradient step {self.gradient_step}, "
                f"{_EXPLODED:g} times what rewards up to {self._largest_reward:.3g} can add up to; the last "
                "checkpoint is intact: set critic_layer_norm: true, or lower critic_lr"
            )

    def _from_all_learners(self, values: Tensor) -> Tensor:
        """`(learners, ...)` what each of them has, by rank."""
        if self.config.num_learners <= 1:
            return values[None]
        found = [torch.empty_like(values) for _ in range(self.config.num_learners)]
        torch.distributed.all_gather(found, values)
        return torch.stack(found)

    def _policy_step(self, window: Window[Tensor], generator: torch.Generator, *, online: bool) -> None:
        """One step of the policy (and of the entropy's temperature)."""
        config, module = self.config, self.online_module
        model = module.model
        with precision.autocast(self.device, module.precision):
            outputs = model(window)
        fit = imitation_loss(model, outputs, window)
        self._add(BC_LOSS, fit.detach())
        loss = fit * (config.bc_weight if online else 1.0)
        if model.spec.head.target_entropy is not None:
            loss = loss - self._weighted_entropy(outputs, window.mask, generator)
        if module.has_critic:
            alpha = config.alpha if online else config.alpha_pretrain
            if alpha > 0:
                observations, dtype = model.inputs(window).observations, precision.dtype_of(module.precision)
                values = module.critic.first(observations, outputs.float(), dtype)
                loss = loss + alpha * losses.td3_actor_loss(values, window.mask, normalize=config.normalize_q)
        if online and module.holds_actions:
            distance = self._action_distance(outputs, window)
            loss = loss + config.action_regularization * distance
            self._add(ACTION_DISTANCE, distance.detach())
        norm = self._apply(POLICY, loss, "the policy's loss", clip=config.grad_clip)
        self._add(GRAD_NORM, norm)
        self._last_loss = loss.detach()

    def _action_distance(self, outputs: Tensor, window: Window[Tensor]) -> Tensor:
        """Return the mean squared distance to the actions of the policy that finetuning began with.

        Means over action dimensions, like the supervised loss (the paper sums over them); tanh(mean) for a Gaussian.
        """
        module = self.online_module
        with torch.no_grad(), precision.autocast(self.device, module.precision):
            initial = module.frozen_model(window)
        mode = module.model.spec.head.mode
        return losses.masked_mse(mode(outputs), mode(initial), window.mask)

    def _weighted_entropy(self, outputs: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the policy's entropy times its temperature, which takes a step of its own towards entropy = -A."""
        module = self.online_module
        entropy = module.model.spec.head.entropy(outputs, mask, generator)
        return self._temperature_step(module.log_temperature, entropy) * entropy
