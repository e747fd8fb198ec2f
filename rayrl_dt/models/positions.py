"""Positions as the authors' Atari networks have them: a vector for each slot of a window, and one for its time.

Sources: the released code of Decision Transformer (github.com/kzl/decision-transformer, MIT) and of RADT
(github.com/CyberAgentAILab/radt, MIT), which both train on the timestep of a window's first step and act on that of its
last. Here both are the first. Slots are counted from the first real step, so that padding shifts nothing.

Shape legend: B batch, K steps, P tokens of a step with vectors of their own, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayrl_dt.models.timesteps import TimestepTable

if TYPE_CHECKING:
    from rayrl_dt.models.model_config import ModelConfig

__all__ = ["WindowPositions"]


class WindowPositions(nn.Module):
    """Learned vectors of slots and of the window's first timestep; all start at zero.

    Args:
        model: says how many steps a window and an episode have, and whether timesteps are embedded.
        tokens_per_step: P.
    """

    def __init__(self, model: ModelConfig, tokens_per_step: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.zeros(model.context_length, tokens_per_step, model.embed_dim))
        self.window = TimestepTable.of(model)
        if self.window is not None:
            nn.init.zeros_(self.window.weight)

    def forward(self, timesteps: Tensor, mask: Tensor | None) -> Tensor:
        """Return `(B, K, P, d)` for timesteps `(B, K)` and a mask `(B, K)`, None for no padding."""
        if mask is None:
            vectors, first = self.slots[: timesteps.shape[1]], timesteps[:, :1]  # (K, P, d), (B, 1)
        else:
            vectors = self.slots[(mask.cumsum(dim=1) - 1).clamp(min=0)]  # (B, K) -> (B, K, P, d)
            first = timesteps.gather(1, mask.int().argmax(dim=1, keepdim=True))  # (B, 1)
        if self.window is None:
            return vectors.expand(timesteps.shape[0], -1, -1, -1)
        window: Tensor = self.window(first)[:, :, None]  # (B, 1, 1, d)
        return vectors + window
