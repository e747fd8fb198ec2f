"""The Decision ConvFormer trunk: Decision Transformer's tokens, mixed by short convolutions instead of attention.

Each layer replaces attention by three depthwise causal convolutions over the whole token sequence, one for each kind
of token (return, state, action); each gives the outputs at the tokens of its own kind (Kim et al. 2024, "Decision
ConvFormer"). Only the last few tokens reach an action, so acting computes only those.

Differences from the released code: it has no padding mask, so what padding holds leaks through its filters; here pads
are zero before each convolution, like the zeros to the left of a window that starts there. The last layer has the
filter of states alone, since nothing reads its other tokens. Timesteps past the table share its last row.

Shape legend: B batch, K steps, d width, W window (taps of a filter), M tokens of a step that are computed: 3 or 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.models.blocks import FeedForward, initialize_normal
from rayrl_dt.models.dropout import Dropout, DropoutSource
from rayrl_dt.models.encoders import ObservationEmbedding
from rayrl_dt.models.return_embedding import ReturnEmbedding
from rayrl_dt.models.timesteps import TimestepTable, add_timesteps
from rayrl_dt.models.trunk import Trunk, TrunkInputs

if TYPE_CHECKING:
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["ConvFormerTrunk", "TokenConvolution"]

_TOKENS_PER_STEP = 3
_STATE = 1


class TokenConvolution(nn.Module):
    """Depthwise causal convolution over the tokens of K steps, with a filter for each kind of token.

    Args:
        width: d.
        window: W; an output sees its own token and the W - 1 before it, zeros where there is none.
        kinds: the tokens of a step whose outputs are wanted.
    """

    def __init__(self, width: int, window: int, kinds: slice) -> None:
        super().__init__()
        self.kinds = kinds
        count = len(range(_TOKENS_PER_STEP)[kinds])
        self.weight = nn.Parameter(torch.empty(window, count, width))
        self.bias = nn.Parameter(torch.empty(count, width))
        bound = 1.0 / math.sqrt(window)  # as PyTorch initializes a depthwise convolution
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, K, 3, d)` to `(B, K, M, d)`."""
        # Tap by tap, each filter at its own tokens only: on a CPU, forward and backward take a sixth of the time of
        # three conv1d.
        sequence = x.flatten(1, 2)  # (B, K, 3, d) -> (B, 3 K, d)
        padded = functional.pad(sequence, (0, 0, len(self.weight) - 1, 0))  # (B, W - 1 + 3 K, d)
        outputs: Tensor = self.bias  # (M, d)
        for tap, weight in enumerate(self.weight.unbind()):
            seen = torch.unflatten(padded[:, tap : tap + sequence.shape[1]], 1, x.shape[1:3])  # (B, K, 3, d)
            outputs = torch.addcmul(outputs, seen[:, :, self.kinds], weight)  # (B, K, M, d)
        return outputs


class _ConvBlock(nn.Module):
    """Pre-norm block: x + convolution(LN x), then x + MLP(LN x)."""

    def __init__(self, spec: PolicySpec, kinds: slice, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        self.norm_convolution = nn.LayerNorm(model.embed_dim)
        self.convolution = TokenConvolution(model.embed_dim, model.conv_window, kinds)
        self.norm_mlp = nn.LayerNorm(model.embed_dim)
        self.mlp = FeedForward(model.embed_dim, model.dropout, model.activation, source)

    def forward(self, x: Tensor, pads: Tensor | None) -> Tensor:
        """Map `(B, K, 3, d)` to `(B, K, M, d)`; `pads` is `(B, K, 1, 1)` bool, True at padding, or None."""
        normed = self.norm_convolution(x)
        if pads is not None:
            normed = normed.masked_fill(pads, 0.0)
        x = x[:, :, self.convolution.kinds] + self.convolution(normed)
        output: Tensor = x + self.mlp(self.norm_mlp(x))
        return output


class ConvFormerTrunk(Trunk):
    """Convolutions over the return, state and action tokens of K steps; features are read at the state tokens.

    Args:
        spec: the policy's specification.
        source: random source of the dropout layers.
    """

    def __init__(self, spec: PolicySpec, *, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        width = model.embed_dim
        self.embed_return = ReturnEmbedding(width, model)
        self.embed_observation = ObservationEmbedding(spec.seen_space, width, spec.model.encoder)
        self.embed_action = spec.head.embedding(width)
        self.embed_timestep = TimestepTable.of(model)
        self.embed_norm = nn.LayerNorm(width)
        self.embed_dropout = Dropout(model.dropout, source)
        kinds = [slice(None)] * (model.num_layers - 1) + [slice(_STATE, _STATE + 1)]
        self.blocks = nn.ModuleList(_ConvBlock(spec, computed, source) for computed in kinds)
        self.final_norm = nn.LayerNorm(width)
        for block in self.blocks:
            block.apply(initialize_normal)
        # How many steps the features of a state token depend on, its own included.
        tokens_before = model.num_layers * (model.conv_window - 1)
        self.reach = 1 + math.ceil((tokens_before - _STATE) / _TOKENS_PER_STEP)

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, K, d)` at the state tokens, or `(B, 1, d)` for the last step only."""
        steps = slice(-self.reach, None) if last_only else slice(None)
        tokens = [
            self.embed_return(inputs.returns_to_go[:, steps]),
            self.embed_observation(inputs.observations[:, steps]),
            self.embed_action(inputs.actions[:, steps]),
        ]
        # 3 x (B, K, d) -> (B, K, 3, d)
        x = add_timesteps(torch.stack(tokens, dim=2), self.embed_timestep, inputs.timesteps[:, steps])
        x = self.embed_dropout(self.embed_norm(x))
        pads = None if inputs.mask is None else ~inputs.mask[:, steps, None, None]  # (B, K, 1, 1)
        for block in self.blocks:
            x = block(x, pads)
        # The last layer left the state tokens: (B, K, 1, d) -> (B, K or 1, d).
        features: Tensor = self.final_norm(x[:, -1:, 0] if last_only else x[:, :, 0])
        return features
