"""How well a policy fits the actions of a window, and its returns."""

from __future__ import annotations

from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

__all__ = ["imitation_loss", "return_loss"]


def imitation_loss(
    model: SequenceModel, outputs: Tensor, window: Window[Tensor], weights: Tensor | None = None
) -> Tensor:
    """Return the supervised loss of the policy's head.

    Args:
        model: the policy network.
        outputs: `(B, P, O)` of its forward, for the last P steps of the window.
        window: raw window.
        weights: `(B, P)`, how much each of those steps counts, for continuous actions; None for 1 each.
    """
    steps = outputs.shape[1]
    wanted, mask = model.to_model_actions(window.actions[:, -steps:]), window.mask[:, -steps:]
    return model.spec.head.imitation_loss(outputs, wanted, mask, weights)


def return_loss(model: SequenceModel, predicted: Tensor, window: Window[Tensor]) -> Tensor:
    """Return the loss of predicted returns-to-go.

    Args:
        model: the policy network, of backbone "reinformer".
        predicted: `(B, K)` scaled, from its trunk.
        window: raw window.
    """
    wanted = window.returns_to_go[..., 0] / model.spec.return_scale
    expectile = model.spec.model.return_expectile
    return losses.reinformer_return_loss(predicted, wanted, window.mask, expectile=expectile)
