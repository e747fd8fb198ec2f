"""TD3's gradient for policies with a memory, and for those without (TD3+ODT, TD3+BC).

Twin critics of single steps first, then the delayed policy, then the targets (Yan et al. 2024, "Reinforcement Learning
Gradients as Vitamin for Online Finetuning Decision Transformers", section 4 and its code). The noise of the critic's
targets has a generator of its own, so a critic that is trained but not used (alpha 0) leaves the policy bit for bit
what it is without one.

Differences from the released code: losses are means over the real steps of a batch (the code's critic divides by
padding too); the policy's squared error is averaged over action dimensions, as in the code (the paper sums them, so
its alpha is smaller by that factor).

Shape legend: B batch, K steps, A action dimensions, S observation dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.critics.companions import Companions
from rayrl_dt.errors import UserError
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.objectives.gradient import (
    CRITIC,
    CRITIC_LOSS,
    Batch,
    Bench,
    GradientSettings,
    Networks,
    RLGradient,
    Trained,
)
from rayrl_dt.objectives.objective import Q_MEAN
from rayrl_dt.policy.acting.every_step import outputs_at_every_step
from rayrl_dt.precision import dtype_of
from rayrl_dt.settings import automatic, count, flag, real, setting, whole_value

__all__ = ["TD3", "TD3Settings"]


@dataclass(frozen=True)
class TD3Settings(GradientSettings):
    """The critic of TD3, and how its gradient enters.

    Attributes:
        actor_interval: gradient steps of the critic for one of the actor and the targets.
        alpha: weight of the critic's gradient online.
        alpha_pretrain: its weight before; the critic is trained in both phases.
        normalize_q: divide alpha by the mean of |Q|, so that it does not hang on the rewards' scale.
        gamma: the critic's discount.
        polyak: share of the new weights in the targets at each of their steps.
        reward_scale: the critic learns from rewards divided by it; targets and returns stay raw. "auto" follows from
            the data, so that alpha weighs the same whatever the rewards' unit is
            (`rayrl_dt.data.scaling.reward_scale`). The authors use 1, and 100 and 1000 on Adroit.
        critic_lr: learning rate of the critic (AdamW).
        critic_weight_decay: its weight decay.
        critic_width: units of its two hidden layers.
        critic_layer_norm: layer norm without parameters in them; what the authors use outside MuJoCo.
    """

    alpha: float = setting(0.1, real(least=0))
    alpha_pretrain: float = setting(0.0, real(least=0))
    normalize_q: bool = setting(False, flag())
    gamma: float = setting(0.99, real(above=0, most=1))
    polyak: float = setting(0.005, real(above=0, most=1))
    reward_scale: float | str = setting("auto", automatic(real(above=0)), fixed=whole_value)
    critic_lr: float = setting(1e-3, real(above=0))
    critic_weight_decay: float = setting(0.01, real(least=0))
    critic_width: int = setting(256, count(1), fixed=whole_value)
    critic_layer_norm: bool = setting(False, flag(), fixed=whole_value)


class TD3(RLGradient):
    """Twin critics and the gradient of the first one through a deterministic policy's actions."""

    reads = TD3Settings
    successors = True
    logs = (CRITIC_LOSS, Q_MEAN)

    settings: TD3Settings

    @property
    def companions(self) -> Companions:
        """Twin critics, slow copies of them and of the policy."""
        shape = {"hidden": self.settings.critic_width, "layer_norm": self.settings.critic_layer_norm}
        return Companions(critic="twin", shape=shape, slow=("model", "critic"))

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a policy that draws its actions.

        Raises:
            UserError: the head is Gaussian.
        """
        if model.head == "gaussian":
            raise UserError(
                "online.rl_gradient td3 needs a deterministic policy, model_config.head is 'gaussian'; set head: "
                "deterministic, or rl_gradient: none (ODT)"
            )

    def trained(self, networks: Networks) -> Iterable[Trained]:
        """Return the critics."""
        settings = self.settings
        yield Trained(CRITIC, networks.critic.parameters(), settings.critic_lr, settings.critic_weight_decay)

    def critic_step(self, bench: Bench, batch: Batch) -> None:
        """Move the critics towards r + gamma min Q'(s', a' of the target policy on the shifted window)."""
        settings, networks, window = self.settings, bench.networks, batch.window
        model, following = networks.model, window.next
        assert following is not None and window.rewards is not None and window.terminated is not None
        scale, dtype = float(settings.reward_scale), dtype_of(networks.precision)
        rewards = window.rewards / scale  # (B, K)
        with torch.no_grad():
            actions = outputs_at_every_step(networks.target_model, following, networks.precision).float()
            actions = losses.smooth_actions(actions, batch.normal(actions))  # (B, K, A)
            observations = model.to_model_observations(following.observations)  # (B, K, S)
            values = networks.target_critic(observations, actions, dtype)  # (2, B, K)
            target = losses.td3_target(rewards, window.terminated, values, gamma=settings.gamma)  # (B, K)
        inputs = batch.inputs
        values = networks.critic(inputs.observations, inputs.actions, dtype)  # (2, B, K)
        loss = losses.td3_critic_loss(values, target, window.mask)
        bench.descend(CRITIC, loss, "the critic's loss")
        mean = values.detach().where(window.mask, 0.0).sum() / (2 * window.mask.sum())
        bench.check_values(mean, window, gamma=settings.gamma, reward_scale=scale)
        bench.log(CRITIC_LOSS, loss.detach())
        bench.log(Q_MEAN, mean)

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Add the first critic's gradient through the policy's actions."""
        settings = self.settings
        alpha = settings.alpha if online else settings.alpha_pretrain
        if alpha == 0:
            return fit
        dtype = dtype_of(networks.precision)
        values = networks.critic.first(
            batch.inputs.observations, outputs.float(), dtype
        )  # (B, K, A) -> (B, K)
        return fit + alpha * losses.td3_actor_loss(values, batch.window.mask, normalize=settings.normalize_q)

    def policy_moved(self, networks: Networks) -> None:
        """Move the targets."""
        networks.move_targets(self.settings.polyak)
