"""How trunks read a return-to-go: a linear map, and where policies also learn to act on none, a vector for no return.

A return of NaN asks for nothing. Only policies with return dropout know that; elsewhere NaN stays NaN and is found out.

Shape legend: d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rayrl_dt.models.model_config import ModelConfig

__all__ = ["ReturnEmbedding"]

_INIT_STD = 0.02


class ReturnEmbedding(nn.Linear):
    """The linear map from a scaled return to d numbers.

    Args:
        width: d.
        model: of the policy; with return dropout, there is a learned vector in place of the map's output for NaN.
    """

    nothing: nn.Parameter | None

    def __init__(self, width: int, model: ModelConfig) -> None:
        super().__init__(1, width)
        self.register_parameter("nothing", None)
        if model.return_dropout > 0:
            self.nothing = nn.Parameter(nn.init.normal_(torch.empty(width), std=_INIT_STD))

    def forward(self, input: Tensor) -> Tensor:
        """Map returns `(..., 1)` to `(..., d)`."""
        if self.nothing is None:
            return super().forward(input)
        unasked = input.isnan()  # (..., 1)
        embedded = super().forward(input.masked_fill(unasked, 0.0))
        return torch.where(unasked, self.nothing.to(embedded.dtype), embedded)
