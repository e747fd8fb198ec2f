"""Attention and feed-forward layer for inference: weights cast once, and multiplied together where that saves work.

With one head, q·k = (Wq x + bq)·(Wk y + bk) is (Wk^T Wq x + Wk^T bq)·y plus a constant of the query, which the softmax
ignores: the token y is its own key, and keys need no product. Likewise the values may hold Wo (Wv y + bv) + bo, since
attention weights sum to one: the output needs no product. That leaves 2 of 4 d² products per token. H heads would take
2 H d² and attend over H d numbers per token, which is no less than the plain products for any H > 1, except where only
one token is read. Products of weights are made in a wider type and rounded once.

Shape legend: B batch, T tokens, R tokens that are read, S source tokens, d width, H heads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.models.blocks import CausalSelfAttention, FeedForward

__all__ = [
    "FeedForwardPlan",
    "LastTokenAttention",
    "NormPlan",
    "SelfAttentionPlan",
    "attention_weights",
    "merge_heads",
    "self_attention_plan",
    "split_heads",
]


_VECTOR = 16
"""Numbers of a vector register. torch takes shorter rows of a softmax number by number: four times as long."""
_MANY = 4096
"""Numbers from which on that costs more than the further operations of a softmax written out."""


def attention_weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Return softmax(query·key + bias), `(B, R, S)`, of scaled queries; `bias` is `(1 or B, R, S)`."""
    # Copying a slice costs less than transposing it, which the product would do.
    transposed = key.contiguous().transpose(1, 2)
    scores = torch.baddbmm(bias.expand(len(query), -1, -1), query, transposed)  # (B, R, S)
    if scores.shape[-1] >= _VECTOR or scores.numel() < _MANY:
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    scores = scores.float()
    weights = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
    return weights.div_(weights.sum(dim=-1, keepdim=True)).to(query.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return `(B * H, T, d / H)` of `(B, T, d)`."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2).flatten(0, 1)  # via (B, T, H, d/H)


def merge_heads(x: Tensor, heads: int) -> Tensor:
    """Inverse of `split_heads`."""
    return torch.unflatten(x, 0, (-1, heads)).transpose(1, 2).flatten(2)


class NormPlan:
    """A LayerNorm of float32, whose output comes in the acting precision `dtype`."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self._shape, self._eps, self._dtype = norm.normalized_shape, norm.eps, dtype
        # torch's kernel is faster with a weight of ones than with none.
        self._weight = torch.ones(self._shape) if norm.weight is None else norm.weight.detach()
        self._bias = None if norm.bias is None else norm.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize `(..., d)`."""
        return functional.layer_norm(x, self._shape, self._weight, self._bias, self._eps).to(self._dtype)


class FeedForwardPlan:
    """A `FeedForward` without dropout, in the acting precision."""

    def __init__(self, layer: FeedForward, dtype: torch.dtype) -> None:
        self._function = layer.function
        self._expand = [layer.expand.weight.detach().to(dtype), layer.expand.bias.detach().to(dtype)]
        self._contract = [layer.contract.weight.detach().to(dtype), layer.contract.bias.detach().to(dtype)]

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(..., d)` to `(..., d)`."""
        return functional.linear(self._function(functional.linear(x, *self._expand)), *self._contract)


class SelfAttentionPlan(ABC):
    """Causal self-attention in two halves: what each token gives by itself, and what is made of them together."""

    @abstractmethod
    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values `(B, T, d)` of tokens `(B, T, d)`."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Return the layer's output `(B, T, d)`; `bias` is `(1 or B, T, T)`."""

    @abstractmethod
    def read(self, x: Tensor, read: slice, bias: Tensor) -> Tensor:
        """Return the layer's output `(B, R, d)` at the tokens `read` of `x (B, T, d)`; `bias` is `(1 or B, R, T)`."""


def self_attention_plan(layer: CausalSelfAttention, dtype: torch.dtype) -> SelfAttentionPlan:
    """Return the plan with the fewer products."""
    return _OneHead(layer, dtype) if layer.heads == 1 else _ManyHeads(layer, dtype)


class _OneHead(SelfAttentionPlan):
    """Merged products: a token is its own key, and the sum of values is the output."""

    def __init__(self, layer: CausalSelfAttention, dtype: torch.dtype) -> None:
        width = layer.out.in_features
        (query, key, value), (b_query, _, b_value) = _wide_parts(layer, dtype)
        out, b_out = (parameter.detach().to(query.dtype) for parameter in layer.out.parameters())
        scale = 1.0 / math.sqrt(width)
        self._weight = torch.cat([scale * (key.T @ query), out @ value]).to(dtype)
        self._bias = torch.cat([scale * (key.T @ b_query), out @ b_value + b_out]).to(dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, value = functional.linear(x, self._weight, self._bias).chunk(
            2, dim=-1
        )  # (B, T, 2 d) -> 2 x (B, T, d)
        return query, x, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        return torch.bmm(attention_weights(query, key, bias), value)

    def read(self, x: Tensor, read: slice, bias: Tensor) -> Tensor:
        (w_query, w_value), (b_query, b_value) = self._weight.chunk(2), self._bias.chunk(2)
        # As matrices, see `LastTokenAttention`. The sum of values is the value of the sum: made once per token read.
        query = functional.linear(x[:, read].flatten(0, 1), w_query, b_query)  # (B R, d)
        # (B, R, d) x (B, T, d) -> (B, R, T), times (B, T, d) -> (B, R, d)
        mixed = torch.bmm(attention_weights(torch.unflatten(query, 0, (len(x), -1)), x, bias), x)
        return torch.unflatten(functional.linear(mixed.flatten(0, 1), w_value, b_value), 0, (len(x), -1))


class _ManyHeads(SelfAttentionPlan):
    """Plain products."""

    def __init__(self, layer: CausalSelfAttention, dtype: torch.dtype) -> None:
        (query, key, value), (b_query, b_key, b_value) = _wide_parts(layer, dtype)
        scale = 1.0 / math.sqrt(layer.out.in_features // layer.heads)
        self._heads = layer.heads
        self._weight = torch.cat([scale * query, key, value]).to(dtype)
        self._bias = torch.cat([scale * b_query, b_key, b_value]).to(dtype)
        self._out = layer.out.weight.detach().to(dtype), layer.out.bias.detach().to(dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # (B, T, 3 d) -> 3 x (B, T, d)
        query, key, value = functional.linear(x, self._weight, self._bias).chunk(3, dim=-1)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (split_heads(x, self._heads) for x in (query, key, value))  # (B H, T, d/H)
        if len(bias) > 1:
            bias = bias.repeat_interleave(self._heads, dim=0)  # (B, R, T) -> (B H, R, T)
        attended = torch.bmm(attention_weights(query, key, bias), value)  # (B H, R, d/H)
        return functional.linear(merge_heads(attended, self._heads), *self._out)

    def read(self, x: Tensor, read: slice, bias: Tensor) -> Tensor:
        query, key, value = self.project(x)
        return self.attend(query[:, read], key, value, bias)


class LastTokenAttention:
    """Self-attention of which one token is read: merged products for any number of heads, and none per other token."""

    def __init__(self, layer: CausalSelfAttention, dtype: torch.dtype) -> None:
        heads, width = layer.heads, layer.out.in_features
        (query, key, value), (b_query, _, b_value) = _wide_parts(layer, dtype)
        scale = 1.0 / math.sqrt(width // heads)
        by_head = zip(query.chunk(heads), key.chunk(heads), b_query.chunk(heads), strict=True)
        pairs = [(scale * (k.T @ q), scale * (k.T @ b)) for q, k, b in by_head]
        out, b_out = (parameter.detach().to(query.dtype) for parameter in layer.out.parameters())
        values = zip(out.chunk(heads, dim=1), value.chunk(heads), strict=True)
        self._heads = heads
        self._query = tuple(torch.cat(parts).to(dtype) for parts in zip(*pairs, strict=True))
        self._value = (
            torch.cat([o @ v for o, v in values], dim=1).to(dtype),
            (out @ b_value + b_out).to(dtype),
        )

    def __call__(self, token: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        """Return the layer's output `(B, 1, d)` at one token.

        Args:
            token: `(B, 1, d)`, the token that is read.
            source: `(B, T, d)`, all tokens.
            bias: `(1 or B, 1, T)`, what the token sees.
        """
        # As matrices: a product with a slice of three dimensions would copy the weights for each element of the batch.
        query = functional.linear(token.flatten(0, 1), *self._query)  # (B, 1, d) -> (B, H d)
        query = torch.unflatten(query, -1, (self._heads, -1))  # (B, H, d)
        weights = attention_weights(query, source, bias.expand(-1, self._heads, -1))  # (B, H, T)
        # (B, H, d) -> (B, H d) -> (B, 1, d)
        return functional.linear(torch.bmm(weights, source).flatten(1), *self._value)[:, None]


def _wide_parts(
    layer: CausalSelfAttention, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Weights and biases of queries, keys and values, for products that are rounded to `dtype`; zeros for no bias."""
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    weight = layer.qkv.weight.detach().to(wide)
    bias = weight.new_zeros(len(weight)) if layer.qkv.bias is None else layer.qkv.bias.detach().to(wide)
    return weight.chunk(3), bias.chunk(3)
