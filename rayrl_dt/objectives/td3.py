"""TD3's gradient for policies with a memory, and for those without (TD3+ODT, TD3+BC).

Twin critics of single steps first, then the delayed policy, then the targets (Yan et al. 2024, "Reinforcement Learning
Gradients as Vitamin for Online Finetuning Decision Transformers", section 4 and its code). The noise of the critic's
targets has a generator of its own, so a critic that is trained but not used (alpha 0) leaves the policy bit for bit
what it is without one.

Differences from the released code: losses are means over the real steps of a batch (the code's critic divides by
padding too); the policy's squared error is averaged over action dimensions, as in the code (the paper sums them, so
its alpha is smaller by that factor).

Shape legend: B batch, K steps, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.errors import UserError
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.objectives.climbing import AlphaSettings, Climbing
from rayrl_dt.objectives.gradient import Batch, Networks
from rayrl_dt.precision import dtype_of
from rayrl_dt.settings import flag, setting

__all__ = ["TD3", "TD3Settings"]


@dataclass(frozen=True)
class TD3Settings(AlphaSettings):
    """The critic of TD3, and how its gradient enters.

    Attributes:
        normalize_q: divide alpha by the mean of |Q|, so that it does not hang on the rewards' scale.
    """

    normalize_q: bool = setting(False, flag())


class TD3(Climbing):
    """Twin critics and the gradient of the first one through a deterministic policy's actions.

    Of more than two it is the gradient of their mean, as RLPD has it.
    """

    reads = TD3Settings

    settings: TD3Settings

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a policy that draws its actions.

        Raises:
            UserError: the head is Gaussian.
        """
        super().check_model(model)
        if model.head == "gaussian":
            raise UserError(
                "online.rl_gradient td3 needs a deterministic policy, model_config.head is 'gaussian'; set head: "
                "deterministic, or rl_gradient: none (ODT)"
            )

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Add the first critic's gradient through the policy's actions."""
        settings = self.settings
        alpha = settings.weight(online=online)
        if alpha == 0:
            return fit
        dtype, observations, actions = (
            dtype_of(networks.precision),
            batch.features,
            self.climbers(outputs, batch),
        )
        if settings.critic_ensemble == 2:
            values = networks.critic.first(observations, actions, dtype)  # (B, K, A) -> (B, K)
        else:
            values = networks.critic.held(observations, actions, dtype).mean(dim=0)  # (E, B, K) -> (B, K)
        return fit + alpha * losses.td3_actor_loss(values, batch.window.mask, normalize=settings.normalize_q)
