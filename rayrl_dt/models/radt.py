"""The trunk of the Return-Aligned Decision Transformer (RADT).

States and actions form one sequence; returns-to-go form another, which every layer consults twice: SeqRA attends
from the states and actions to the returns, and StepRA scales and shifts the tokens of a step by its own return.
Followed is the authors' released code (github.com/CyberAgentAILab/radt, MIT), since the paper leaves details open.

Differences: pads are masked with the right sign (the released trainer passes its mask inverted, and so does
`padding_mask="inverted"`, in training only, as there); the last layer computes only the tokens that are read; a
padding query attends to its own step instead of uniformly to everything, and is never read; with `embeddings: gym`,
where the authors have no pictures, tokens of pictures are normalized, as DT normalizes all of its tokens.

Shape legend: B batch, K steps, T = 2K tokens (s, a of each step), R tokens that are read, d width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.errors import UserError
from rayrl_dt.models.blocks import (
    CausalSelfAttention,
    CrossAttention,
    FeedForward,
    attention_bias,
    initialize_normal,
)
from rayrl_dt.models.dropout import Dropout, DropoutSource
from rayrl_dt.models.encoders import ObservationEmbedding
from rayrl_dt.models.positions import WindowPositions
from rayrl_dt.models.return_embedding import ReturnEmbedding
from rayrl_dt.models.timesteps import rows_of
from rayrl_dt.models.trunk import Trunk, TrunkInputs

if TYPE_CHECKING:
    from rayrl_dt.models.model_config import ModelConfig
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["RADTBlock", "RADTTrunk", "ReturnStream", "SequenceReturnAligner", "sinusoids"]

_TOKENS_PER_STEP = 2
_INVERTED_BIAS = -1e4


@dataclass(frozen=True)
class ReturnStream:
    """What every layer reads of the returns-to-go. The same tensors in all layers.

    Attributes:
        gates: `(B, K, d)` SiLU of the embedded returns; StepRA projects them to scales and shifts.
        keys: `(B, K, d)` embedded returns plus the position, normalized; what SeqRA's keys are made of.
        values: `(B, K, d)` embedded returns alone, normalized; what SeqRA's values are made of.
        bias: `(1 or B, 1, K, K)` additive mask among steps; step t sees the returns of steps up to t.
    """

    gates: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor


class SequenceReturnAligner(nn.Module):
    """SeqRA: cross-attention from the tokens to the returns-to-go, scaled elementwise by 1 + lambda.

    lambda is a linear function of the attended returns and the residual stream, zero at initialization: the attention
    is then fully on (a plain residual). -1 turns it off. The query is the residual stream where norms come last, and
    its norm where they come first.

    Args:
        width: d.
        heads: attention heads.
        dropout: probability.
        adaptive: whether lambda is there; without it the residual stays plain.
        source: random source of the dropout layers.
    """

    def __init__(
        self, width: int, heads: int, dropout: float, *, adaptive: bool, source: DropoutSource
    ) -> None:
        super().__init__()
        self.attention = CrossAttention(width, heads, dropout, source)
        self.dropout = Dropout(dropout, source)
        self.scaling = nn.Linear(2 * width, width) if adaptive else None

    def forward(self, query: Tensor, stream: Tensor, returns: ReturnStream, bias: Tensor) -> Tensor:
        """Return what is to be added to `stream (B, R, d)`; `query` has its shape, `bias` is `(1 or B, 1, R, K)`."""
        z: Tensor = self.dropout(self.attention(query, returns.keys, returns.values, bias))  # (B, R, d)
        if self.scaling is None:
            return z
        scale = self.scaling(torch.cat([z, stream.to(z.dtype)], dim=-1))  # (B, R, 2 d) -> (B, R, d)
        aligned: Tensor = torch.addcmul(z, scale, z)
        return aligned


class _StepReturnAligner(nn.Module):
    """StepRA: per-step scales and shifts, one pair for each norm of a block, from the step's return-to-go."""

    def __init__(self, width: int, pairs: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.project = nn.Linear(width, 2 * pairs * width)

    def forward(self, gates: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (gamma, beta), each `(B, K, d)`, of each pair."""
        chunks = self.project(gates).chunk(2 * self.pairs, dim=-1)  # (B, K, 2 pairs d) -> 2 pairs x (B, K, d)
        return list(zip(chunks[::2], chunks[1::2], strict=True))


class RADTBlock(nn.Module):
    """Self-attention, SeqRA and MLP; each followed (post-norm) or preceded (pre-norm) by a modulated norm."""

    def __init__(self, spec: PolicySpec, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        width = model.embed_dim
        self.post_norm = model.norm == "post"
        self.attention = CausalSelfAttention(
            width, model.num_heads, model.dropout, source, projection_bias=False
        )
        self.dropout = Dropout(model.dropout, source)
        self.aligner = (
            SequenceReturnAligner(
                width, model.num_heads, model.dropout, adaptive=model.adaptive_scaling, source=source
            )
            if model.use_seqra
            else None
        )
        self.mlp = FeedForward(width, model.dropout, model.activation, source)
        norms = 3 if model.use_seqra else 2
        self.modulation = _StepReturnAligner(width, norms) if model.use_stepra else None
        # Scale and shift come from StepRA where it is there, from the norm's own parameters elsewhere.
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, eps=1e-6, elementwise_affine=not model.use_stepra) for _ in range(norms)
        )

    def forward(self, x: Tensor, bias: Tensor, returns: ReturnStream, read: slice | None) -> Tensor:
        """Return `(B, T, d)`, or `(B, R, d)` for the tokens `read`, all of them state tokens.

        Args:
            x: `(B, T, d)`.
            bias: `(1 or B, 1, T, T)` mask among the tokens.
            returns: the return stream.
            read: the tokens that are wanted; None for all.
        """
        pairs = self.modulation(returns.gates) if self.modulation is not None else []
        # Keys and values need every token; after the attention only what is read goes on.
        queries = x if self.post_norm else self._norm(0, x, pairs, None)
        attended = self.dropout(self.attention(queries, bias, read))  # (B, T, d) -> (B, T or R, d)
        x = (x if read is None else x[:, read]) + attended
        last = len(self.norms) - 1
        if self.post_norm:
            x = self._norm(0, x, pairs, read)
            if self.aligner is not None:
                x = self._norm(
                    1, x + self.aligner(x, x, returns, _cross_bias(returns.bias, read)), pairs, read
                )
            return self._norm(last, x + self.mlp(x), pairs, read)
        if self.aligner is not None:
            query = self._norm(1, x, pairs, read)
            x = x + self.aligner(query, x, returns, _cross_bias(returns.bias, read))
        output: Tensor = x + self.mlp(self._norm(last, x, pairs, read))
        return output

    def _norm(self, index: int, x: Tensor, pairs: list[tuple[Tensor, Tensor]], read: slice | None) -> Tensor:
        normed: Tensor = self.norms[index](x)
        if not pairs:
            return normed
        gamma, beta = pairs[index]
        if read is not None:
            steps = _steps(read)
            return torch.addcmul(beta[:, steps].to(normed.dtype), normed, 1 + gamma[:, steps])
        # A state and an action share the modulation of their step.
        normed = torch.unflatten(normed, 1, (-1, _TOKENS_PER_STEP))  # (B, T, d) -> (B, K, 2, d)
        return torch.addcmul(beta[:, :, None].to(normed.dtype), normed, 1 + gamma[:, :, None]).flatten(1, 2)


class RADTTrunk(Trunk):
    """RADT over the state and action tokens of K steps; features are read at the state tokens.

    Args:
        spec: the policy's specification.
        source: random source of the dropout layers.
    """

    positions: Tensor

    def __init__(self, spec: PolicySpec, *, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        width = model.embed_dim
        self.inverted_mask = model.padding_mask == "inverted"
        self.embed_return = ReturnEmbedding(width, model)
        self.embed_observation = ObservationEmbedding(spec.seen_space, width, spec.model.encoder)
        self.embed_action = spec.head.embedding(width)
        self.window_positions: WindowPositions | None = None
        self.embed_dropout: nn.Module = nn.Identity()
        if model.embeddings == "atari":
            self.window_positions = WindowPositions(model, 1)
            self.embed_dropout = Dropout(model.dropout, source)
        else:
            self.embed_position = nn.Linear(width, width)
            table = sinusoids(rows_of(model) + model.context_length, width)
            self.register_buffer("positions", table, persistent=False)
        self.blocks = nn.ModuleList(RADTBlock(spec, source) for _ in range(model.num_layers))
        self.apply(initialize_normal)
        if self.window_positions is not None:
            # As in the code that the authors started from, Decision Transformer's for Atari.
            self.embed_return.reset_parameters()
            self.embed_observation.reset_parameters()
            if self.window_positions.window is not None:
                nn.init.zeros_(self.window_positions.window.weight)
        for block in self.blocks:
            assert isinstance(block, RADTBlock)
            # lambda, gamma and beta start at zero.
            if block.modulation is not None:
                nn.init.zeros_(block.modulation.project.weight)
            if block.aligner is not None and block.aligner.scaling is not None:
                nn.init.zeros_(block.aligner.scaling.weight)

    @classmethod
    def check(cls, model: ModelConfig) -> None:
        """Check that something reads the returns; see `Trunk.check`."""
        if not (model.use_seqra or model.use_stepra):
            raise UserError(
                "model_config.use_seqra and use_stepra are both false, so nothing reads the returns; "
                "for a policy without returns choose backbone: no-return"
            )
        if not (model.use_seqra or model.adaptive_scaling):
            raise UserError(
                "model_config.adaptive_scaling false needs use_seqra: it scales that attention; remove it"
            )

    @classmethod
    def decided(cls, model: ModelConfig) -> dict[str, Any]:
        """Return where the norms stand; see `Trunk.decided`."""
        auto = "post" if model.use_stepra else "pre"
        return {"norm": auto if model.norm == "auto" else model.norm}

    def initialize_head(self, head: nn.Linear) -> None:
        """Initialize the head as the authors do: N(0, 0.02), bias 0."""
        initialize_normal(head)

    def embed(self, inputs: TrunkInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the tokens `(B, K, 2, d)` and `ReturnStream`'s gates, keys and values, functions of each step."""
        observed = self.embed_observation(inputs.observations)  # (B, K, d)
        if self.window_positions is None:
            if self.embed_observation.encoder.raw:
                # What convolutions say is small beside actions and positions, and was left unread for long.
                observed = functional.layer_norm(observed, observed.shape[-1:])
            position = self.embed_position(
                self.positions[inputs.timesteps.clamp(max=len(self.positions) - 1)]
            )
        else:
            observed = functional.silu(observed)
            position = self.window_positions(inputs.timesteps, inputs.mask)[
                :, :, 0
            ]  # (B, K, 1, d) -> (B, K, d)
        embedded = self.embed_return(inputs.returns_to_go)  # (B, K, d)
        tokens = [observed, self.embed_action(inputs.actions)]
        x = torch.stack(tokens, dim=2) + position[:, :, None]  # 2 x (B, K, d) -> (B, K, 2, d)
        width = embedded.shape[-1:]
        keys = functional.layer_norm(embedded + position, width)
        return x, functional.silu(embedded), keys, functional.layer_norm(embedded, width)

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, K, d)` at the state tokens, or `(B, 1, d)` for the last step only."""
        tokens, gates, keys, values = self.embed(inputs)
        x = self.embed_dropout(tokens.flatten(1, 2))  # (B, K, 2, d) -> (B, T, d)
        count = x.shape[1]
        returns = ReturnStream(
            gates=gates,
            keys=keys,
            values=values,
            bias=self._bias(inputs.mask, 1, x),
        )
        bias = self._bias(inputs.mask, _TOKENS_PER_STEP, x)  # (1 or B, 1, T, T)
        read = slice(count - _TOKENS_PER_STEP if last_only else 0, count, _TOKENS_PER_STEP)
        for block in self.blocks[:-1]:
            x = block(x, bias, returns, None)
        features: Tensor = self.blocks[-1](x, bias, returns, read)  # (B, T, d) -> (B, K or 1, d)
        return features

    def _bias(self, mask: Tensor | None, tokens_per_step: int, x: Tensor) -> Tensor:
        tokens = x.shape[1] // _TOKENS_PER_STEP * tokens_per_step
        if not (self.inverted_mask and self.training):
            return attention_bias(mask, tokens, tokens_per_step, x)
        bias = attention_bias(None, tokens, tokens_per_step, x)
        if mask is None:
            return bias + _INVERTED_BIAS
        real = mask.repeat_interleave(tokens_per_step, dim=1)[:, None, None, :]  # (B, K) -> (B, 1, 1, T)
        return bias + _INVERTED_BIAS * real.to(x.dtype)


def sinusoids(length: int, width: int) -> Tensor:
    """Return the `(length, width)` table of sines and cosines of Vaswani et al. 2017, section 3.5."""
    places = torch.arange(0, width, 2)
    if places.is_meta:  # shapes alone are asked for, and torch would load its compiler to multiply them
        return torch.empty(length, width, device=places.device)
    rates = torch.exp(places * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]  # (length, width)


def _cross_bias(steps: Tensor, read: slice | None) -> Tensor:
    """Return the mask of SeqRA: a state and an action see the returns of the steps up to their own."""
    if read is None:
        return steps.repeat_interleave(_TOKENS_PER_STEP, dim=2)  # (1 or B, 1, K, K) -> (1 or B, 1, T, K)
    return steps[:, :, _steps(read)]


def _steps(read: slice) -> slice:
    """Return the steps of the state tokens `read`."""
    return slice(read.start // _TOKENS_PER_STEP, None)
