"""Acting with Decision Transformer, with or without return tokens.

Kept of each step: its embedded tokens, and their queries, keys and values in the first layer. That is exact, since all
of these are functions of the token and its timestep alone, which do not change while the window slides over them. What
the first layer's attention makes of them does change when the oldest step drops out, and with it all that follows.

The last action token, which nobody sees, is left out. The last layer computes the token that is read.

Shape legend: B batch, N slots, K steps, P tokens of a step, T = K P - 1 tokens, d width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from rayrl_dt.models.blocks import Block
from rayrl_dt.models.decision_transformer import TransformerTrunk
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.trunk import TrunkInputs
from rayrl_dt.policy.acting.layers import (
    FeedForwardPlan,
    LastTokenAttention,
    NormPlan,
    self_attention_plan,
)
from rayrl_dt.policy.acting.plan import CachedPlan
from rayrl_dt.policy.context import ContextBuffer

__all__ = ["TransformerPlan", "layer_plans"]


class _LayerPlan:
    """A block for inference."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.norm_attention = NormPlan(block.norm_attention, dtype)
        self.attention = self_attention_plan(block.attention, dtype)
        self.norm_mlp = NormPlan(block.norm_mlp, dtype)
        self.mlp = FeedForwardPlan(block.mlp, dtype)


def layer_plans(trunk: TransformerTrunk, dtype: torch.dtype) -> list[_LayerPlan]:
    """Return the blocks of a trunk for inference."""
    return [_LayerPlan(cast(Block, block), dtype) for block in trunk.blocks]


class TransformerPlan(CachedPlan):
    """Acts with a `TransformerTrunk`; see the module's docstring and `CachedPlan`."""

    def __init__(self, model: SequenceModel, context: ContextBuffer, precision: str) -> None:
        trunk = model.trunk
        assert isinstance(trunk, TransformerTrunk)
        super().__init__(model, context, precision, trunk.tokens_per_step)
        self._trunk = trunk
        self._layers = layer_plans(trunk, self.dtype)
        self._read = LastTokenAttention(trunk.blocks[-1].attention, self.dtype)  # type: ignore[arg-type]

    def step_values(self, inputs: TrunkInputs) -> list[Tensor]:
        """Return the embedded tokens, and the first layer's queries, keys and values, `(N, steps, P, d)` each."""
        tokens = self._trunk.embed(inputs)  # (N, steps, P, d)
        first = self._layers[0]
        return [tokens, *first.attention.project(first.norm_attention(tokens))]

    def features(self, kept: list[Tensor], mask: Tensor | None) -> Tensor:
        """Return the features at the newest state token; see `CachedPlan.features`."""
        x, *projected = (values.flatten(1, 2)[:, :-1] for values in kept)  # (B, K, P, d) -> (B, T, d)
        bias = self.bias(mask, self._tokens_per_step)[:, :-1, :-1]  # (1 or B, T, T)
        for number, layer in enumerate(self._layers[:-1]):
            if number > 0:
                projected = list(layer.attention.project(layer.norm_attention(x)))
            x = x + layer.attention.attend(projected[0], projected[1], projected[2], bias)
            x = x + layer.mlp(layer.norm_mlp(x))
        last = self._layers[-1]
        normed = last.norm_attention(x)
        x = x[:, -1:] + self._read(normed[:, -1:], normed, bias[:, -1:])  # (B, T, d) -> (B, 1, d)
        return self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        """Return the trunk's features `(B, 1, d)` for what the last block's attention leaves."""
        last = self._layers[-1]
        x = x + last.mlp(last.norm_mlp(x))
        features: Tensor = self._trunk.final_norm(x)
        return features
