"""The critic's gradient for policies of discrete actions: the value that the policy's law has on average.

What TD3+ODT does through an action (Yan et al. 2024, equations 2 and 3) is done here through the probabilities of all
actions, as in soft actor-critic for discrete actions (Christodoulou 2019, "Soft Actor-Critic for Discrete Action
Settings", section 3), without its entropy: nothing is drawn. With V_i(s, pi) = sum_a pi(a | s) Q_i(s, a) the policy
descends bc_weight CE - alpha min_i V_i(s, pi), and critics move towards r + gamma min_i V'_i(s', pi').

Critics read the features of the policy's encoder, so they need no convolutions of their own. The encoder learns from
the policy's loss alone.

Differs from TD3+ODT in that the policy climbs the lower one of two critics, as in soft actor-critic, and not the first.

Shape legend: B batch, K steps, n discrete actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.critics.companions import Companions
from rayrl_dt.errors import UserError
from rayrl_dt.models.head import Head
from rayrl_dt.models.heads import CategoricalHead
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.objectives.climbing import Climbing
from rayrl_dt.objectives.critic_gradient import judgment
from rayrl_dt.objectives.gradient import Batch, Bench, Networks
from rayrl_dt.objectives.td3 import TD3Settings
from rayrl_dt.policy.acting.every_step import outputs_at_every_step

__all__ = ["ExpectedQ"]


class ExpectedQ(Climbing):
    """Critics of all discrete actions, and their gradient through the policy's probabilities."""

    reads = TD3Settings

    settings: TD3Settings

    @property
    def companions(self) -> Companions:
        """Critics of discrete actions, slow copies of them and of the policy."""
        found = super().companions
        return Companions(critic="discrete", shape=found.shape, slow=found.slow)

    @classmethod
    def fits(cls, head: Head) -> bool:
        """Return whether outputs are the law of one discrete action."""
        return isinstance(head, CategoricalHead)

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a policy of other actions.

        Raises:
            UserError: the head is chosen, and not categorical.
        """
        super().check_model(model)
        if model.head not in ("auto", "categorical"):
            raise UserError(
                f"online.rl_gradient expected_q needs discrete actions, model_config.head is {model.head!r}; set head: "
                "categorical, or another rl_gradient: td3, sac, pg, awac, q_align or none"
            )

    def following(self, bench: Bench, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the law of the slow copy's next actions `(B, K, n)`, and nothing beside its value."""
        networks = bench.networks
        following = self.asked_next(networks, batch, online=bench.online)
        outputs = outputs_at_every_step(self.followed(networks), following, networks.precision)
        law = _law(networks, outputs)
        return law, torch.zeros_like(law[..., 0])

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Add what the critics make of the policy's law."""
        settings = self.settings
        alpha = settings.weight(online=online)
        if alpha == 0:
            return fit
        values = judgment(
            networks, batch, _law(networks, self.climbers(outputs, batch))
        )  # (B, K, n) -> (B, K)
        return fit + alpha * losses.td3_actor_loss(values, batch.window.mask, normalize=settings.normalize_q)


def _law(networks: Networks, outputs: Tensor) -> Tensor:
    head = networks.model.spec.head
    assert isinstance(head, CategoricalHead)
    return head.law(outputs)
