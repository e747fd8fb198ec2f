"""What the gradients share that raise a policy's actions up the critics: how much, and for which returns.

The papers climb at the returns that episodes achieved. What is asked for while collecting and in evaluation lies far
above them at first, so how the policy acts there is what the network makes of its neighbors. `gradient_returns: target`
climbs there instead: the data are fitted at what they achieved, and what is asked for most is pushed up. Nothing pushes
the actions for lower returns, so the policy stays obedient below.

Shape legend: B batch, K steps, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.objectives.critic_gradient import CriticGradient, CriticSettings
from rayrl_dt.objectives.gradient import Batch, Networks
from rayrl_dt.objectives.return_order import check_asked_for_returns
from rayrl_dt.objectives.return_shift import as_if_asked
from rayrl_dt.settings import choice, real, setting
from rayrl_dt.types import Window

__all__ = ["AlphaSettings", "Climbing"]

Kind = TypeVar("Kind", bound="Climbing")


@dataclass(frozen=True)
class AlphaSettings(CriticSettings):
    """How the critic's gradient enters.

    Attributes:
        alpha: weight of the critic's gradient online.
        alpha_pretrain: its weight before; the critic is trained in both phases.
        gradient_returns: the returns at which the policy's actions climb and critics follow it, online: "achieved" by
            the episodes of the batch, as the papers have it; "target" for what rollouts are asked for
            (`exploration_target`, or the highest evaluation target) less what the episode has earned.
    """

    alpha: float = setting(0.1, real(least=0))
    alpha_pretrain: float = setting(0.0, real(least=0))
    gradient_returns: str = setting("achieved", choice("achieved", "target"))

    def weight(self, *, online: bool) -> float:
        """Return the weight in a phase."""
        return self.alpha if online else self.alpha_pretrain


class Climbing(CriticGradient):
    """Critics, and a gradient through the policy's actions at the returns achieved, or asked for.

    Attributes:
        target: raw return that rollouts are asked for; None where nothing climbs there.
    """

    settings: AlphaSettings
    target: float | None = None

    @classmethod
    def of(cls: type[Kind], config: Any) -> Kind:
        """Build one, which knows its target once the data are known."""
        gradient = super().of(config)
        if gradient.reads_episode_returns and config.policy_spec is not None:
            gradient.target = config.rollout_target()
        return gradient

    @property
    def reads_episode_returns(self) -> bool:
        """Whether it climbs at the target, which is how far above what an episode achieved."""
        return self.settings.gradient_returns == "target"

    def check_model(self, model: ModelConfig) -> None:
        """Refuse policies that are not asked for returns, where the target is what climbs.

        Raises:
            UserError: the backbone reads none, or acts on returns of its own.
        """
        if self.reads_episode_returns:
            check_asked_for_returns(
                model, "online.gradient_returns target climbs at", "gradient_returns: achieved"
            )

    def asked_next(self, networks: Networks, batch: Batch, *, online: bool) -> Window[Tensor]:
        """Return the shifted windows with the returns at which the policy climbs."""
        following = super().asked_next(networks, batch, online=online)
        if not self._aims(online=online):
            return following
        return replace(following, returns_to_go=self._aimed(following, batch))

    def asked_returns(self, networks: Networks, batch: Batch, *, online: bool) -> Tensor | None:
        """Return the returns `(1, B, K, 1)` at which the policy climbs, where they are not those of the data.

        Windows that ask for nothing climb there, too: that is for their fit to the data.
        """
        if not self._aims(online=online) or self.settings.weight(online=online) == 0:
            return None
        return self._aimed(batch.drawn, batch)[None]

    def climbers(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the outputs `(B, K, O)` that climb: those for the target, or those for the returns of the data."""
        return (outputs if batch.asked is None else batch.asked[0]).float()

    def _aims(self, *, online: bool) -> bool:
        return self.target is not None and online

    def _aimed(self, window: Window[Tensor], batch: Batch) -> Tensor:
        """Return the returns `(B, K, 1)` of windows of the batch, shifted or not, as if asked for the target."""
        assert self.target is not None and batch.drawn.episode_returns is not None
        return as_if_asked(window, batch.drawn.episode_returns, self.target)
