"""How well a policy's outputs fit the actions of a window, by the kind of its head, and its returns."""

from __future__ import annotations

from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

__all__ = ["imitation_loss", "return_loss"]


def imitation_loss(
    model: SequenceModel, outputs: Tensor, window: Window[Tensor], weights: Tensor | None = None
) -> Tensor:
    """Return the supervised loss: squared error, cross-entropy, or the negative log-likelihood of a Gaussian head.

    Args:
        model: the policy network.
        outputs: `(B, P, ...)` of its forward, for the last P steps of the window.
        window: raw window.
        weights: `(B, P)`, how much each of those steps counts, for continuous actions; None for 1 each.
    """
    steps = outputs.shape[1]
    wanted, mask = model.to_model_actions(window.actions[:, -steps:]), window.mask[:, -steps:]
    if model.spec.discrete:
        return losses.cross_entropy(outputs, wanted, mask)
    if model.spec.gaussian:
        return losses.squashed_gaussian_nll(*model.gaussian(outputs.float()), wanted, mask, weights)
    return losses.masked_mse(outputs, wanted, mask, weights)


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
