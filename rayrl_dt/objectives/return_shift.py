"""Other returns to ask for: how far windows are shifted, and where that ends.

Shape legend: B batch, K steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl_dt.types import Window

__all__ = ["ReturnShift", "shifted"]

# Of the last shifts' deviation: shorter ones say nothing.
_SHORTEST = 0.2


@dataclass(frozen=True)
class ReturnShift:
    """How far returns are shifted, all in raw returns.

    Attributes:
        start: standard deviation at first.
        end: at last.
        low: the range of what is asked for.
        high: its other end.
        target: what is added in the critic's target.
    """

    start: float
    end: float
    low: float
    high: float
    target: float

    def draw(self, progress: float, noise: Tensor) -> Tensor:
        """Return the shifts `(B,)` for standard normal numbers `(B,)`, when `progress` (0 to 1) of training is over."""
        sigma = self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
        size = (sigma * noise.abs()).clamp(min=_SHORTEST * self.end)
        return torch.where(noise < 0, -size, size)


def shifted(window: Window[Tensor], shift: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Shift the returns of windows, each as a whole, so that the first real one stays within a range.

    A return outside of the range is not drawn into it, only not moved further out. Windows that ask for nothing, whose
    returns are NaN, have none to shift.

    Args:
        window: raw windows.
        shift: `(B,)` raw.
        low: of the range.
        high: of the range.

    Returns:
        `(B, K, 1)` raw returns, padding as it was, and `(B,)`, the shifts as they came to be.
    """
    first = window.mask.int().argmax(dim=1, keepdim=True)  # (B, 1)
    begin = window.returns_to_go[..., 0].gather(1, first)[:, 0]  # (B,)
    moved = torch.minimum(torch.maximum(begin + shift, begin.clamp(max=low)), begin.clamp(min=high))
    # Exactly nothing for a shift of nothing.
    shift = torch.where(moved == begin + shift, shift, moved - begin)
    shift = shift.masked_fill(begin.isnan(), 0.0)
    returns = window.returns_to_go + shift[:, None, None] * window.mask[..., None]
    return returns, shift
