"""Finetuning that obeys: critics that learn online order the policy's actions by the return that is asked for.

The supervised loss and the loss of wrong orders of Q-Align (`rayrl_dt.objectives.q_align`, Yang and Zhang 2026), which
the authors have on logged data. TD3's gradient pushes every action up, whatever return it was taken for, and a policy
so finetuned forgets what it is asked for. Here what is asked for more is pushed up, what is asked for less down, and
nothing is pushed that is in order.

Differs from `q_align`: the critics are those of `CriticGradient`, as many as there are; their targets ask the slow
policy for the top of the range at the shifted window, and it acts there as for any gradient with critics; of more than
two critics the mean of their violations counts; and the weight is always divided by the mean of |Q|.

Shape legend: B batch, K steps, A action dimensions, E critics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.critic_gradient import CriticGradient, CriticSettings
from rayrl_dt.objectives.gradient import Batch, Networks
from rayrl_dt.objectives.return_order import ALIGN_LOGS, Order, check_asked_for_returns
from rayrl_dt.objectives.return_shift import ReturnShift
from rayrl_dt.settings import automatic, real, setting
from rayrl_dt.types import Window

__all__ = ["OnlineQAlign", "OnlineQAlignSettings"]


@dataclass(frozen=True)
class OnlineQAlignSettings(CriticSettings):
    """The critics, and how their order enters.

    Attributes:
        order_weight: of the loss of wrong orders, by the mean of |Q|; from the start of finetuning.
        order_shift: standard deviation of the shifts when the run begins, with its pretraining, in raw returns; it
            falls to a third by the run's end. "auto" for the distance between the 5th and the 95th percentile
            of the logged returns.
        order_low: lowest return that is asked for by a shift; "auto" for the lowest logged one, or 0 if that is lower.
        order_high: highest one, which the critics' targets ask for; "auto" for the highest logged one, or 0 if that is
            higher. Set it to what the task can pay where that is more.
    """

    order_weight: float = setting(1.0, real(least=0))
    order_shift: float | str = setting("auto", automatic(real(above=0)))
    order_low: float | str = setting("auto", automatic(real()))
    order_high: float | str = setting("auto", automatic(real()))


class OnlineQAlign(CriticGradient):
    """Fits the data, and orders the actions of each window by the return that it is asked for."""

    reads = OnlineQAlignSettings
    logs: ClassVar[tuple[str, ...]] = (*CriticGradient.logs, *ALIGN_LOGS)
    reads_progress = True

    settings: OnlineQAlignSettings

    def check_model(self, model: ModelConfig) -> None:
        """Refuse policies that are not asked for returns.

        Raises:
            UserError: the backbone reads none, or acts on returns of its own.
        """
        check_asked_for_returns(model, "online.rl_gradient q_align orders actions by", "rl_gradient: td3")

    def check_policy(self, spec: PolicySpec) -> None:
        """Check that neither shift nor range is empty; see `ReturnShift.check`.

        Raises:
            UserError: one is.
        """
        self._law(spec).check(spec, "online.order", "rl_gradient: td3")

    def asked_next(self, networks: Networks, batch: Batch, *, online: bool) -> Window[Tensor]:
        """Return the shifted windows with the returns that end at the top of the range."""
        following = super().asked_next(networks, batch, online=online)
        return self._law(networks.model.spec).at_the_top(following)

    def asked_returns(self, networks: Networks, batch: Batch, *, online: bool) -> Tensor | None:
        """Return the shifted returns `(1, B, K, 1)`, once finetuning has begun."""
        if not online or self.settings.order_weight == 0:
            return None
        return self._law(networks.model.spec).ask(batch)

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Add the loss of wrong orders."""
        if batch.asked is None:
            return fit
        critic, observations = networks.critic, batch.features
        order = Order.of(
            batch, outputs, networks.model.spec, lambda actions: critic.held(observations, actions)
        )
        loss = order.loss(twins="min" if critic.ensemble == 2 else "mean")
        batch.logged |= order.logged(loss)
        return fit + self.settings.order_weight / order.size * loss

    def _law(self, spec: PolicySpec) -> ReturnShift:
        settings = self.settings
        return ReturnShift.of_data(
            spec.data_returns, start=settings.order_shift, low=settings.order_low, high=settings.order_high
        )
