"""The order that returns should give to actions, in the light of critics: asked for more, do what is worth more.

Yang and Zhang 2026, Q-Align; `rayrl_dt.objectives.q_align` on logged data, `online_q_align` while finetuning.

Shape legend: B batch, K steps, A action dimensions, E critics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayrl_dt.errors import UserError
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.gradient import Batch
from rayrl_dt.objectives.objective import mean_of_steps

__all__ = ["ALIGN_LOGS", "Order", "check_asked_for_returns", "ordering_loss", "rise_of"]

ALIGN_LOSS, AGREEMENT, SLOPE = ALIGN_LOGS = ("align_loss", "align_agreement", "align_slope")
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Order:
    """What critics make of the actions of a batch, and of those that the policy takes for shifted returns.

    Attributes:
        anchor: `(E, B, K)` of the actions for the returns of the data, without gradients.
        gaps: `(E, B, K)`, how far the values of the others lie above it in the direction of the shift; negative where
            the order is wrong.
        shift: `(B, 1)`, in units of the return scale.
        mask: `(B, K)`, real steps.
    """

    anchor: Tensor
    gaps: Tensor
    shift: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: Batch, outputs: Tensor, spec: PolicySpec, value: Callable[[Tensor], Tensor]) -> Order:
        """Value the actions of a batch that has asked for shifted returns.

        Args:
            batch: with `asked` and `shift`.
            outputs: `(B, K, O)` of the policy for the returns of the data.
            spec: the policy's.
            value: values `(E, B, K)` of actions `(B, K, A)`, with gradients for these.
        """
        assert batch.asked is not None and batch.shift is not None
        mode = spec.head.mode
        with torch.no_grad():
            anchor = value(mode(outputs).float())  # (E, B, K)
        moved = value(mode(batch.asked[0]).float())  # (E, B, K)
        shift = (batch.shift / spec.return_scale)[:, None]  # (B, 1)
        return cls(anchor, shift.sign() * (moved - anchor), shift, batch.window.mask)

    @property
    def counts(self) -> Tensor:
        """Where there is an order, `(B, K)`: real steps of windows that were shifted."""
        return self.mask & (self.shift != 0)

    @property
    def size(self) -> Tensor:
        """The mean of |Q| over real steps, `()`, at least the smallest float."""
        return mean_of_steps(self.anchor.abs().mean(dim=0), self.mask).clamp(min=_TINY)

    def loss(self, *, twins: str, margin: Tensor | float = 0.0) -> Tensor:
        """Return `ordering_loss`."""
        return ordering_loss(self.gaps, self.counts, twins=twins, margin=margin)

    def logged(self, loss: Tensor) -> dict[str, Tensor]:
        """Return what is worth a line in the log beside the loss, detached; NaN where no window was shifted."""
        rises, counts = self.gaps.detach(), self.counts
        return {
            ALIGN_LOSS: loss.detach(),
            AGREEMENT: mean_of_steps((rises > 0).float().mean(dim=0), counts),
            SLOPE: mean_of_steps(rises.mean(dim=0) / self.shift.abs().where(self.shift != 0, 1.0), counts),
        }


def ordering_loss(gaps: Tensor, mask: Tensor, *, twins: str = "min", margin: Tensor | float = 0.0) -> Tensor:
    """Return the mean over real steps of how far values fall where they should rise.

    Args:
        gaps: `(E, B, K)`, each critic's rise in the direction of the shift.
        mask: `(B, K)`.
        twins: "min", the lowest of the violations, or "mean".
        margin: by how much they should rise, `(B, 1)`.
    """
    violations = functional.relu(margin - gaps)  # (E, B, K)
    lenient = violations.amin(dim=0) if twins == "min" else violations.mean(dim=0)  # (B, K)
    return lenient.where(mask, 0.0).sum() / mask.sum().clamp(min=1)


def rise_of(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return the slope `()` of the least squares line through values over returns, both `(B, K)`; 0 where it falls."""
    known_values, known_returns = values[mask], returns[mask]  # (N,) each
    away = known_returns - known_returns.mean()
    slope = (away * known_values).sum() / away.square().sum().clamp(min=_TINY)
    return slope.clamp(min=0.0)


def check_asked_for_returns(model: ModelConfig, what: str, otherwise: str) -> None:
    """Refuse policies that are not asked for returns.

    Args:
        model: the policy's choices.
        what: a setting and what it does by the return that is asked for, for the message.
        otherwise: what else to choose, likewise.

    Raises:
        UserError: the backbone reads none, or acts on returns of its own.
    """
    backbone = BACKBONES[model.backbone]
    if backbone.reads_returns and not backbone.predicts_returns:
        return
    having = [name for name, row in BACKBONES.items() if row.reads_returns and not row.predicts_returns]
    why = "acts on returns that it predicts itself" if backbone.predicts_returns else "reads no returns"
    raise UserError(
        f"{what} the return that is asked for, and backbone {model.backbone!r} {why}; choose "
        f"{', '.join(having)}, or {otherwise}"
    )
