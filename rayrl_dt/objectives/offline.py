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

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.imitation import imitation_loss
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

OBJECTIVES = ("imitation", "pg", "awac")
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


class Objective(Protocol):
    """The loss of a policy's outputs."""

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Judge a batch.

        Args:
            model: the policy network; with continuous actions, where a critic is asked.
            critic: in its units, frozen; None only for imitation.
            outputs: `(B, P, ...)` of the policy's forward, for the last P steps of the window.
            window: raw window.
        """


@dataclass(frozen=True)
class Imitation:
    """The supervised loss alone."""

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Fit the actions of the data, whatever a critic thinks."""
        return Terms(imitation_loss(model, outputs, window))


@dataclass(frozen=True)
class PolicyGradient:
    """L_imitation - weight * E[Q(s, pi)] / E|Q(s, pi)| (equation 9).

    The denominator is detached: with it, the ratio is 1 wherever all Q are positive, and has no gradient.

    Attributes:
        weight: alpha, of at least 0; at 0 the policy is trained as without a critic.
    """

    weight: float

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Add the critic's gradient through the policy's actions."""
        assert critic is not None
        read = window.last(outputs.shape[1])
        observations = model.inputs(read).observations
        values = critic(observations, model.spec.head.mode(outputs).float()).amin(dim=0)
        fit = imitation_loss(model, outputs, window)
        loss = fit
        if self.weight > 0:
            loss = fit + self.weight * losses.td3_actor_loss(values, read.mask, normalize=True)
        return Terms(loss, {BC_LOSS: fit.detach(), Q_MEAN: _mean(values, read.mask)})


@dataclass(frozen=True)
class AdvantageWeighted:
    """-E[log pi(a) exp((Q(s, a) - Q(s, pi)) / temperature)], weights detached and bounded (equation 10).

    Attributes:
        temperature: above 0, in units of Q; towards infinity it is plain imitation.
        cap: largest weight, above 0.
    """

    temperature: float
    cap: float

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Weigh each logged action by how much better it is than the policy's."""
        assert critic is not None
        read = window.last(outputs.shape[1])
        inputs = model.inputs(read)
        own = critic(inputs.observations, model.spec.head.mode(outputs.detach()).float()).amin(dim=0)
        logged = critic(inputs.observations, inputs.actions).amin(dim=0)
        weights = losses.advantage_weights(logged - own, temperature=self.temperature, cap=self.cap)
        loss = imitation_loss(model, outputs, window, weights)
        return Terms(loss, {BC_LOSS: loss.detach(), Q_MEAN: _mean(own, read.mask)})


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over real steps, detached."""
    return values.detach().where(mask, 0.0).sum() / mask.sum()
