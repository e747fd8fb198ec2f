"""What an objective of training on logged data is, and the one that all others begin with: imitation.

Shape legend: B batch, P predicted steps.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.gradient import RLGradient
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.settings import Settings
from rayrl_dt.types import Window

__all__ = ["BC_LOSS", "Q_MEAN", "Imitation", "Objective", "Terms", "mean_of_steps"]

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
        asks_critic: whether it needs a critic, and so continuous actions.
        trained_critic: settings of the critic that it trains itself where it is given none; None where it does not.
    """

    section: ClassVar[str] = "training"
    asks_critic: ClassVar[bool] = True
    trained_critic: ClassVar[type[Settings] | None] = None

    @property
    def reads_episode_returns(self) -> bool:
        """Whether batches carry the returns of their windows' episodes."""
        return False

    def gradient(self, critic_hidden: int | None) -> RLGradient | None:
        """Return what pushes the policy beside this loss; None where a loss of its outputs is all.

        Args:
            critic_hidden: width of the frozen critic that it is given; None where it has none.
        """
        return None

    def check_policy(self, spec: PolicySpec) -> None:
        """Refuse policies, or data, that it cannot train.

        Raises:
            UserError: with another choice.
        """

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


def mean_of_steps(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `(B, P)` over real steps, detached."""
    return values.detach().where(mask, 0.0).sum() / mask.sum()
