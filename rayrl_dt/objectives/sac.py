"""Soft actor-critic's gradient for policies with a memory, whose entropy Online Decision Transformer tunes already.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", section 5. The policy descends
bc_weight NLL - lambda H - alpha Q(s, a~), with ODT's temperature lambda, which holds the entropy at -A, of the actions
that climb. With bc_weight 0 and alpha 1 that is soft actor-critic alone.

Differs from the paper in what a memory asks: states are windows, and a' of the targets is drawn at the shifted window
with the returns-to-go that its episode achieved. Critics step before the policy.

Shape legend: B batch, K steps, A action dimensions, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.critics.companions import Companions
from rayrl_dt.errors import UserError
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.climbing import AlphaSettings, Climbing
from rayrl_dt.objectives.critic_gradient import judgment
from rayrl_dt.objectives.gradient import Batch, Bench, Networks
from rayrl_dt.policy.acting.every_step import outputs_at_every_step
from rayrl_dt.settings import flag, setting

__all__ = ["SAC", "SACSettings"]


@dataclass(frozen=True)
class SACSettings(AlphaSettings):
    """The critic of soft actor-critic, and how its gradient enters.

    Attributes:
        entropy_in_targets: whether the critics value the entropy to come, as in the paper; WSRL and RLPD on sparse
            rewards leave it out.
    """

    entropy_in_targets: bool = setting(True, flag())


class SAC(Climbing):
    """Critics of a policy that draws, and their gradient through its draws."""

    reads = SACSettings

    settings: SACSettings

    @property
    def companions(self) -> Companions:
        """Critics and their slow copy; the policy has none in soft actor-critic."""
        return Companions(critic="twin", shape=super().companions.shape, slow=("critic",))

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a policy that draws nothing.

        Raises:
            UserError: the head is not Gaussian.
        """
        super().check_model(model)
        if model.head != "gaussian":
            chosen = "'auto', which is deterministic" if model.head == "auto" else repr(model.head)
            raise UserError(
                f"online.rl_gradient sac needs a policy that draws its actions, model_config.head is {chosen}; set "
                "head: gaussian, or rl_gradient: td3"
            )

    def followed(self, networks: Networks) -> SequenceModel:
        """Return the policy as it is."""
        return networks.model

    def following(self, bench: Bench, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw the next actions `(B, K, A)` of the policy as it is, and return the worth of their entropy `(B, K)`.

        The temperature is one of the policy's loss, where Q counts alpha times; in units of Q it is lambda / alpha.
        While alpha is 0 the policy climbs no Q, and the critics value its rewards alone.
        """
        networks = bench.networks
        following = self.asked_next(networks, batch, online=bench.online)
        model = self.followed(networks).eval()  # without dropout, as slow copies act
        outputs = outputs_at_every_step(model, following, networks.precision).float()
        model.train()
        actions, log_density = model.spec.head.sample_with_density(outputs, batch.noise)
        alpha = self.settings.weight(online=bench.online)
        if alpha == 0 or not self.settings.entropy_in_targets:
            return actions, torch.zeros_like(log_density)
        return actions, -(networks.log_temperature.detach().exp() / alpha) * log_density

    def entropy_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the outputs that climb: there the critics value the entropy, and collection draws."""
        return self.climbers(outputs, batch)

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Add the critics' gradient through an action drawn at each step; `fit` has the entropy in it."""
        alpha = self.settings.weight(online=online)
        if alpha == 0:
            return fit
        head = networks.model.spec.head
        actions, _ = head.sample_with_density(self.climbers(outputs, batch), batch.noise)  # (B, K, A)
        values = judgment(networks, batch, actions)  # (B, K)
        return fit + alpha * losses.td3_actor_loss(values, batch.window.mask, normalize=False)
