"""The two ways of Lin et al. 2025 to train with a critic (`rayrl_dt.objectives.offline`), whose critic learns online.

Offline the critic is frozen and of the data; here it is that of `CriticGradient`, and follows the policy. Both take any
head of continuous actions.

Shape legend: B batch, K steps, A action dimensions, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.objectives.climbing import AlphaSettings, Climbing
from rayrl_dt.objectives.critic_gradient import CriticGradient, CriticSettings, judgment
from rayrl_dt.objectives.gradient import Batch, Networks
from rayrl_dt.settings import real, setting

__all__ = ["OnlineAWAC", "OnlineAWACSettings", "OnlinePG"]


class OnlinePG(Climbing):
    """Fits the data and climbs Q(s, pi) / E|Q(s, pi)|, the denominator detached (equation 9).

    pi is the policy's own action: tanh(mean) of a Gaussian head. `alpha` is its weight; QT's are 0.4 to 5.
    """

    reads = AlphaSettings

    settings: AlphaSettings

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Add the normalized gradient through the policy's actions."""
        alpha = self.settings.weight(online=online)
        if alpha == 0:
            return fit
        actions = networks.model.spec.head.mode(self.climbers(outputs, batch))  # (B, K, A)
        values = judgment(networks, batch, actions)  # (B, K)
        return fit + alpha * losses.td3_actor_loss(values, batch.window.mask, normalize=True)


@dataclass(frozen=True)
class OnlineAWACSettings(CriticSettings):
    """The critic, and how much its advantages weigh.

    Attributes:
        advantage_temperature: lambda, in units of Q, which are rewards divided by `reward_scale`; the larger, the
            nearer to plain imitation.
        advantage_cap: largest weight of an action.
    """

    advantage_temperature: float = setting(1.0, real(above=0))
    advantage_cap: float = setting(100.0, real(above=0))


class OnlineAWAC(CriticGradient):
    """Fits each action as much as exp((Q(s, a) - Q(s, pi)) / lambda) says, from the start of finetuning (equation 10).

    Pretraining clones the data, as with all others, and trains the critics.
    """

    reads = OnlineAWACSettings

    settings: OnlineAWACSettings

    @torch.no_grad()
    def imitation_weights(
        self, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor | None:
        """Return the weights `(B, K)`, detached and bounded."""
        if not online:
            return None
        actions = networks.model.spec.head.mode(outputs.float())  # (B, K, A)
        own, logged = (judgment(networks, batch, each) for each in (actions, batch.inputs.actions))  # (B, K)
        temperature, cap = self.settings.advantage_temperature, self.settings.advantage_cap
        return losses.advantage_weights(logged - own, temperature=temperature, cap=cap)
