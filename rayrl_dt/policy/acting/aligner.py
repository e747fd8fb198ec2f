"""RADT's attention to the returns-to-go (SeqRA), for inference.

The norms' scales and shifts are folded into the projections, as in `models.blocks.CrossAttention`; the shift of the
keys adds the same to all scores of a query and drops out. With one head the keys hold the query's product too, and the
values those of the output and of the output's share in lambda (see `layers`): returns are few, and their keys and
values are made once, so that a token is left with one d² product, its own share in lambda.

Shape legend: B batch, R tokens that are read, S returns, d width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from rayrl_dt.models.radt import SequenceReturnAligner
from rayrl_dt.policy.acting.layers import attention_weights, merge_heads, split_heads

__all__ = ["AlignerPlan", "aligner_plan"]


class AlignerPlan(ABC):
    """SeqRA in two halves: what each return-to-go gives by itself, and what a token makes of them."""

    @abstractmethod
    def project(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys `(B, S, d)` and values `(B, S, d or 2d)` of what they are made of, `(B, S, d)` each."""

    @abstractmethod
    def align(self, query: Tensor, stream: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Return what is to be added to the residual stream.

        Args:
            query: `(B, R, d)`, what attends.
            stream: `(B, R, d)`, the residual stream, which lambda reads.
            key: of `project`.
            value: of `project`.
            bias: `(1 or B, R, S)`.
        """


def aligner_plan(aligner: SequenceReturnAligner, dtype: torch.dtype) -> AlignerPlan:
    """Return the plan with the fewer products."""
    kind = _OneHead if aligner.attention.heads == 1 else _ManyHeads
    return kind(aligner, dtype)


class _Weights:
    """The weights of SeqRA in float64, with the norms folded in."""

    def __init__(self, aligner: SequenceReturnAligner) -> None:
        attention = aligner.attention
        width = attention.out.in_features
        self.query = _wide(attention.query.weight) / math.sqrt(width // attention.heads)
        self.key = _wide(attention.key.weight) * _wide(attention.norm_key.weight)
        self.value = _wide(attention.value.weight) * _wide(attention.norm_value.weight)
        self.b_value = _wide(attention.value.weight) @ _wide(attention.norm_value.bias)
        self.out, self.b_out = _wide(attention.out.weight), _wide(attention.out.bias)


class _OneHead(AlignerPlan):
    """Merged products."""

    def __init__(self, aligner: SequenceReturnAligner, dtype: torch.dtype) -> None:
        weights = _Weights(aligner)
        value, b_value = weights.out @ weights.value, weights.out @ weights.b_value + weights.b_out
        self._own: Tensor | None = None
        if aligner.scaling is not None:
            # lambda = share z + own x + bias, of the attended returns z and the residual stream x
            share, own = _wide(aligner.scaling.weight).chunk(2, dim=1)
            b_share = share @ b_value + _wide(aligner.scaling.bias)
            value, b_value = torch.cat([value, share @ value]), torch.cat([b_value, b_share])
            self._own = own.to(dtype)
        self._key = (weights.query.T @ weights.key).to(dtype)
        self._value = value.to(dtype), b_value.to(dtype)

    def project(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return functional.linear(keys, self._key), functional.linear(values, *self._value)

    def align(self, query: Tensor, stream: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        attended = torch.bmm(attention_weights(query, key, bias), value)  # (B, R, d or 2 d)
        if self._own is None:
            return attended
        z, scale = attended.chunk(2, dim=-1)  # (B, R, d) each
        return torch.addcmul(z, scale + functional.linear(stream, self._own), z)


class _ManyHeads(AlignerPlan):
    """Plain products."""

    def __init__(self, aligner: SequenceReturnAligner, dtype: torch.dtype) -> None:
        weights = _Weights(aligner)
        self._heads = aligner.attention.heads
        self._query, self._key = weights.query.to(dtype), weights.key.to(dtype)
        self._value = weights.value.to(dtype), weights.b_value.to(dtype)
        self._out = weights.out.to(dtype), weights.b_out.to(dtype)
        scaling = aligner.scaling
        self._scaling = (
            None if scaling is None else (_wide(scaling.weight).to(dtype), _wide(scaling.bias).to(dtype))
        )

    def project(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return functional.linear(keys, self._key), functional.linear(values, *self._value)

    def align(self, query: Tensor, stream: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        query = functional.linear(query, self._query)
        query, key, value = (split_heads(x, self._heads) for x in (query, key, value))  # (B H, R or S, d/H)
        if len(bias) > 1:
            bias = bias.repeat_interleave(self._heads, dim=0)
        attended = torch.bmm(attention_weights(query, key, bias), value)
        z = functional.linear(merge_heads(attended, self._heads), *self._out)  # (B H, R, d/H) -> (B, R, d)
        if self._scaling is None:
            return z
        return torch.addcmul(z, functional.linear(torch.cat([z, stream], dim=-1), *self._scaling), z)


def _wide(values: Tensor) -> Tensor:
    return values.detach().double()
