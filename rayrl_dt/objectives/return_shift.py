"""Other returns to ask for: how far windows are shifted, and where that ends.

Shape legend: B batch, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.gradient import Batch
from rayrl_dt.types import Window

__all__ = ["ReturnShift", "as_if_asked", "shifted"]

# Of the last shifts' deviation: shorter ones say nothing.
_SHORTEST = 0.2
# Of the first shifts' deviation, what it falls to; as on most of the data sets of Q-Align's authors.
_LAST = 1 / 3


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

    @classmethod
    def of_data(
        cls,
        returns: Mapping[str, float],
        *,
        start: float | str = "auto",
        end: float | str = "auto",
        low: float | str = "auto",
        high: float | str = "auto",
        target: float | str = "auto",
    ) -> ReturnShift:
        """Return the shift with what is given, in raw returns; "auto" follows from the data.

        Args:
            returns: of the data, by the names of `PolicySpec.data_returns`.
            start: "auto" for the distance between the 5th and the 95th percentile.
            end: "auto" for a third of it.
            low: "auto" for the data's lowest return, or 0 if that is lower.
            high: "auto" for the highest one, or 0 if that is higher.
            target: "auto" for the whole range.
        """

        def chosen(value: float | str, otherwise: float) -> float:
            return otherwise if isinstance(value, str) else value

        begin = chosen(start, returns["p95"] - returns["p5"])
        lowest, highest = chosen(low, min(returns["min"], 0.0)), chosen(high, max(returns["max"], 0.0))
        return cls(
            begin, chosen(end, _LAST * begin), lowest, highest, target=chosen(target, highest - lowest)
        )

    def check(self, spec: PolicySpec, prefix: str, otherwise: str) -> None:
        """Check that neither shift nor range is empty.

        Args:
            spec: the policy whose data decided.
            prefix: of the settings' names, for the message.
            otherwise: what else to choose, likewise.

        Raises:
            UserError: all returns of the data are the same, or the range is empty.
        """
        if self.start == 0:
            raise UserError(
                f"{prefix}_shift auto is as far as the returns of {spec.dataset} differ, and they are all about "
                f"{spec.data_returns['p50']:.6g}; set {prefix}_shift, or {otherwise}"
            )
        if self.low >= self.high:
            raise UserError(
                f"{prefix}_low is {self.low:g} and {prefix.rsplit('.', 1)[-1]}_high {self.high:g}; set a range of "
                "returns, low before high"
            )

    def ask(self, batch: Batch) -> Tensor:
        """Return a batch's returns `(1, B, K, 1)` shifted by a draw, and leave the shifts in `Batch.shift`."""
        shift = self.draw(batch.progress, batch.normal(batch.window.returns_to_go[:, 0, 0]))  # (B,)
        returns, batch.shift = shifted(batch.window, shift, self.low, self.high)
        return returns[None]

    def at_the_top(self, window: Window[Tensor]) -> Window[Tensor]:
        """Return the windows as a critic's target asks for them."""
        shift = window.returns_to_go.new_full((window.batch_size,), self.target)
        return replace(window, returns_to_go=shifted(window, shift, self.low, self.high)[0])

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


def as_if_asked(window: Window[Tensor], episode_returns: Tensor, asked: Tensor | float) -> Tensor:
    """Return the returns `(B, K, 1)` of windows whose episodes had begun with other returns; padding as it was.

    Args:
        window: raw windows, with the returns that their episodes achieved.
        episode_returns: `(B, K)` raw, of those episodes.
        asked: raw return at an episode's first step, `(B, 1)` or one for all.
    """
    further = (asked - episode_returns) * window.mask  # (B, K)
    return window.returns_to_go + further[..., None]
