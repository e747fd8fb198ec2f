"""Losses as pure functions.

Shape legend: B batch, P predicted steps, A action dimensions, n discrete actions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["cross_entropy", "masked_mse"]


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over real steps and action dimensions (Decision Transformer, section 3).

    Long windows weigh more than short ones: the mean is over steps, not over windows.

    Args:
        predicted: `(B, P, A)`.
        target: `(B, P, A)`.
        mask: `(B, P)` bool; steps that are False have no influence, whatever they hold.
    """
    # Selecting before squaring keeps the gradient of padding at zero even where it holds infinities.
    error = (predicted.float() - target.float()).where(mask[..., None], 0.0)
    return error.square().mean(dim=-1).sum() / mask.sum()


def cross_entropy(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the discrete actions of real steps.

    Args:
        logits: `(B, P, n)`.
        target: `(B, P)` int64 indices from 0; padding may hold any number.
        mask: `(B, P)` bool.
    """
    index = target.where(mask, 0).flatten()
    loss = functional.cross_entropy(logits.float().flatten(0, 1), index, reduction="none")
    return loss.where(mask.flatten(), 0.0).sum() / mask.sum()
