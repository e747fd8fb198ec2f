"""What a policy is trained towards on logged data: their actions, and what a frozen critic thinks of them.

PG and AWAC are the two ways of Lin et al. 2025 (Action Gradient, section 5, equations 9 and 10) to use the critic in
training where Action Gradient uses it in acting. The critic is that of implicit Q-learning, learned before and from the
same data; it never learns from the policy.

Where the paper is silent: Q is the lower one of the twins, as for Action Gradient; of a Gaussian head the action is
tanh(mean); a deterministic head's log-density is minus its squared error, averaged over the action dimensions. The
sign of equation 10 is misprinted: the weighted log-density is maximized.

Shape legend: B batch, P predicted steps, A action dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.settings import Settings, real, setting
from rayrl_dt.types import Window

__all__ = [
    "BC_LOSS",
    "OBJECTIVES",
    "Q_MEAN",
    "AdvantageWeighted",
    "Imitation",
    "Objective",
    "PolicyGradient",
    "Terms",
]

BC_LOSS = "bc_loss"
Q_MEAN = "q_mean"


@dataclass(frozen=True)
class Terms:
    """What a batch says.

    Attributes:
        loss: `()`, to be minimized.
        logged: what else is worth a line in the log, detached: the supervised part of the loss under `BC_LOSS`, the
            mean Q of the policy's actions under `Q_MEAN`.
    """

    loss: Tensor
    logged: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective(Settings):
    """The loss of a policy's outputs.

    Attributes:
        asks_critic: whether it needs a frozen critic, and so continuous actions.
    """

    section: ClassVar[str] = "training"
    asks_critic: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Judge a batch.

        Args:
            model: the policy network; with continuous actions, where a critic is asked.
            critic: in its units, frozen; None only where it is not asked.
            outputs: `(B, P, ...)` of the policy's forward, for the last P steps of the window.
            window: raw window.
        """


@dataclass(frozen=True)
class Imitation(Objective):
    """The supervised loss alone."""

    asks_critic: ClassVar[bool] = False

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Fit the actions of the data, whatever a critic thinks."""
        return Terms(imitation_loss(model, outputs, window))


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """L_imitation - weight * E[Q(s, pi)] / E|Q(s, pi)| (equation 9).

    The denominator is detached: with it, the ratio is 1 wherever all Q are positive, and has no gradient.

    Attributes:
        pg_weight: alpha, the critic's share; at 0 the policy is trained as without a critic. QT, which the papers take
            it from, uses 0.4 to 5.
    """

    pg_weight: float = setting(1.0, real(least=0))

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Add the critic's gradient through the policy's actions."""
        assert critic is not None
        read = window.last(outputs.shape[1])
        observations = model.inputs(read).observations  # (B, P, S)
        actions = model.spec.head.mode(outputs).float()  # (B, P, A)
        values = critic(observations, actions).amin(dim=0)  # (2, B, P) -> (B, P)
        fit = imitation_loss(model, outputs, window)
        loss = fit
        if self.pg_weight > 0:
            loss = fit + self.pg_weight * losses.td3_actor_loss(values, read.mask, normalize=True)
        return Terms(loss, {BC_LOSS: fit.detach(), Q_MEAN: _mean(values, read.mask)})


@dataclass(frozen=True)
class AdvantageWeighted(Objective):
    """-E[log pi(a) exp((Q(s, a) - Q(s, pi)) / temperature)], weights detached and bounded (equation 10).

    Attributes:
        awac_temperature: lambda, in units of Q, which are rewards divided by the critic's own scale; the larger, the
            nearer to plain imitation.
        awac_cap: largest weight of an action.
    """

    awac_temperature: float = setting(1.0, real(above=0))
    awac_cap: float = setting(100.0, real(above=0))

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Weigh each logged action by how much better it is than the policy's."""
        assert critic is not None
        read = window.last(outputs.shape[1])
        inputs = model.inputs(read)
        actions = model.spec.head.mode(outputs.detach()).float()  # (B, P, A)
        own = critic(inputs.observations, actions).amin(dim=0)  # (2, B, P) -> (B, P)
        logged = critic(inputs.observations, inputs.actions).amin(dim=0)
        weights = losses.advantage_weights(logged - own, temperature=self.awac_temperature, cap=self.awac_cap)
        loss = imitation_loss(model, outputs, window, weights)
        return Terms(loss, {BC_LOSS: loss.detach(), Q_MEAN: _mean(own, read.mask)})


OBJECTIVES: dict[str, type[Objective]] = {
    "imitation": Imitation,
    "pg": PolicyGradient,
    "awac": AdvantageWeighted,
}
"""By their names in `training.objective`; another one is a class and a row here."""


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over real steps, detached."""
    return values.detach().where(mask, 0.0).sum() / mask.sum()
