"""Attention, feed-forward layer and the pre-norm transformer block, with the last layer read only where needed.

Shape legend: B batch, T tokens, R tokens that are read, S source tokens, d width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.models.dropout import Dropout, DropoutSource, activation

__all__ = [
    "Block",
    "CausalSelfAttention",
    "CrossAttention",
    "FeedForward",
    "attention_bias",
    "initialize_normal",
]

_INIT_STD = 0.02


def initialize_normal(layer: nn.Module) -> None:
    """Give one linear or embedding layer weights from N(0, 0.02) and zero biases, as GPT-2 does."""
    if isinstance(layer, (nn.Linear, nn.Embedding)):
        nn.init.normal_(layer.weight, std=_INIT_STD)
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def attention_bias(mask: Tensor | None, tokens: int, tokens_per_step: int, like: Tensor) -> Tensor:
    """Return the additive causal and padding bias, `(1 or B, 1, T, T)`: 0 where visible, -inf elsewhere.

    Args:
        mask: `(B, K)` bool, True at real steps, or None if nothing is padded.
        tokens: T, equal to K * `tokens_per_step`.
        tokens_per_step: how many tokens a step has.
        like: a tensor that gives dtype and device.

    Every token sees itself, so that the (never read) rows of padding stay finite.
    """
    future = torch.full((1, 1, tokens, tokens), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)
    if mask is None:
        return future
    pads = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, -torch.inf)
    bias = future + pads.repeat_interleave(tokens_per_step, dim=1)[:, None, None, :]  # (B, K) -> (B, 1, T, T)
    return bias.masked_fill_(torch.eye(tokens, dtype=torch.bool, device=like.device), 0.0)


class _Attention(nn.Module):
    """What self- and cross-attention share: heads, attention weights and their dropout."""

    def __init__(self, width: int, heads: int, dropout: float, source: DropoutSource) -> None:
        super().__init__()
        self.heads = heads
        self.out = nn.Linear(width, width)
        self.weight_dropout = Dropout(dropout, source)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attend from `(B, R, d)` queries to `(B, S, d)` keys and values; return `(B, R, d)`."""
        q, k, v = self._split(q), self._split(k), self._split(v)  # (B, H, R or S, d/H)
        dropping = self.training and self.weight_dropout.p > 0.0
        if q.device.type != "cpu" and not dropping:
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
            return self._merge(attended)
        # SDPA would draw its dropout from the global generator. On a CPU, and for windows as short as these, it also
        # takes longer than plain products.
        bias = bias.to(q.dtype).expand(*q.shape[:2], -1, -1).flatten(0, 1)  # (B H, R, S)
        weights = self._weights(q.flatten(0, 1), k.flatten(0, 1), bias)  # (B H, R, S)
        attended = torch.bmm(weights.to(v.dtype), v.flatten(0, 1))  # (B H, R, d/H)
        return self._merge(torch.unflatten(attended, 0, (-1, self.heads)))

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        """Attention weights after dropout, `(B H, R, S)`, for flat batches of queries, keys and biases."""
        scale = 1.0 / math.sqrt(self.out.in_features // self.heads)
        scores = torch.baddbmm(bias, q, k.transpose(-2, -1), alpha=scale)
        weights: Tensor = self.weight_dropout(scores.softmax(dim=-1))
        return weights

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)  # (B, T, d) -> (B, H, T, d/H)

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)  # (B, H, R, d/H) -> (B, R, d)


class CausalSelfAttention(_Attention):
    """Multi-head attention with one fused projection; queries may be a subset of the tokens.

    Args:
        width: d.
        heads: H.
        dropout: probability on the attention weights.
        source: random source of the dropout layers.
        projection_bias: whether queries, keys and values have a bias (GPT-2 has, RADT has not).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        source: DropoutSource,
        *,
        projection_bias: bool = True,
    ) -> None:
        super().__init__(width, heads, dropout, source)
        self.qkv = nn.Linear(width, 3 * width, bias=projection_bias)

    def forward(self, x: Tensor, bias: Tensor, read: slice | None = None) -> Tensor:
        """Attend.

        Args:
            x: `(B, T, d)`.
            bias: `(1 or B, 1, T, T)` from `attention_bias`.
            read: the tokens whose output is wanted; None for all.

        Returns:
            `(B, T or R, d)`.
        """
        width = x.shape[-1]
        if read is None:
            q, k, v = torch.split(self.qkv(x), width, dim=-1)  # (B, T, 3 d) -> 3 x (B, T, d)
            attended = self._attend(q, k, v, bias)
        elif self._few(len(range(x.shape[1])[read]), x):
            attended = self._read_few(x, bias[:, :, read], read)
        else:
            (w_q, w_kv), (b_q, b_kv) = self._parts(width, 2 * width)
            q = functional.linear(x[:, read], w_q, b_q)  # (B, R, d)
            k, v = torch.split(functional.linear(x, w_kv, b_kv), width, dim=-1)  # 2 x (B, T, d)
            attended = self._attend(q, k, v, bias[:, :, read])
        output: Tensor = self.out(attended)
        return output

    def _parts(self, *sizes: int) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Return the rows of the fused projection's weight and bias, cut into pieces."""
        biases = self.qkv.bias
        cut = (None,) * len(sizes) if biases is None else torch.split(biases, list(sizes))
        return torch.split(self.qkv.weight, list(sizes)), cut

    def _few(self, reads: int, x: Tensor) -> bool:
        """Return whether `_read_few` takes fewer multiplications than projecting each token to its key and value."""
        _, tokens, width = x.shape
        return x.device.type == "cpu" and (tokens - reads) * width > (self.heads - 1) * reads * tokens

    def _read_few(self, x: Tensor, bias: Tensor, read: slice) -> Tensor:
        """Attend from a few tokens, without a key or value for each token; return `(B, R, d)`.

        q·(Wk x + bk) is (q Wk)·x plus a constant of the query, which the softmax ignores; and sum w (Wv x + bv) is
        Wv (sum w x) + bv sum w.
        """
        width = x.shape[-1]
        (w_q, w_k, w_v), (b_q, _, b_v) = self._parts(width, width, width)
        q = self._split(functional.linear(x[:, read], w_q, b_q))  # (B, H, R, d/H)
        q = torch.matmul(q, torch.unflatten(w_k, 0, (self.heads, -1))).flatten(1, 2)  # (B, H R, d)
        # (1 or B, 1, R, T) -> (B, H R, T)
        bias = bias.to(q.dtype).expand(-1, self.heads, -1, -1).flatten(1, 2).expand(q.shape[0], -1, -1)
        weights = self._weights(q, x.to(q.dtype), bias)  # (B, H R, T)
        mixed = torch.bmm(weights.to(q.dtype), x.to(q.dtype))  # (B, H R, d)
        mixed = torch.unflatten(mixed, 1, (self.heads, -1))  # (B, H, R, d)
        # (B, H, R, d) x (H, d, d/H) -> (B, H, R, d/H)
        values = torch.matmul(mixed, torch.unflatten(w_v, 0, (self.heads, -1)).transpose(-2, -1))
        if b_v is not None:
            totals = torch.unflatten(weights.sum(dim=-1, keepdim=True), 1, (self.heads, -1))  # (B, H, R, 1)
            values = values + (totals * torch.unflatten(b_v, 0, (self.heads, 1, -1))).to(values.dtype)
        return self._merge(values)


class CrossAttention(_Attention):
    """Multi-head attention from one sequence to another; queries, keys and values have no bias of their own.

    Keys and values each read a sequence of their own, through a LayerNorm of their own. The sequences come normalized:
    scale and shift of the norms are folded into the projections here, so that one pair of sequences serves every layer.
    """

    def __init__(self, width: int, heads: int, dropout: float, source: DropoutSource) -> None:
        super().__init__(width, heads, dropout, source)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.norm_key = nn.LayerNorm(width)
        self.norm_value = nn.LayerNorm(width)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attend.

        Args:
            query: `(B, R, d)`.
            keys: `(B, S, d)`, what the keys are made of, with zero mean and unit variance along d.
            values: `(B, S, d)`, what the values are made of, likewise.
            bias: `(1 or B, 1, R, S)`.

        Returns:
            `(B, R, d)`.
        """
        key = _project(keys, self.key, self.norm_key)  # (B, S, d)
        value = _project(values, self.value, self.norm_value)
        output: Tensor = self.out(self._attend(self.query(query), key, value, bias))
        return output


def _project(normalized: Tensor, projection: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """Return the projection of what `norm` would make of a sequence that lacks only the norm's scale and shift."""
    return functional.linear(normalized, projection.weight * norm.weight, projection.weight @ norm.bias)


class FeedForward(nn.Module):
    """d -> 4d, activation, 4d -> d, dropout."""

    def __init__(self, width: int, dropout: float, function: str, source: DropoutSource) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout, source)
        self.function = activation(function)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, d)` to `(B, T, d)`."""
        # Flat, because autograd copies views that are changed in place, as ReLU does.
        hidden = self.function(self.expand(x.flatten(0, 1)))  # (B, T, d) -> (B T, 4 d)
        output: Tensor = self.dropout(self.contract(hidden)).view(x.shape)  # (B, T, d)
        return output


class Block(nn.Module):
    """Pre-norm GPT-2 block: x + attention(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, heads: int, dropout: float, function: str, source: DropoutSource) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, dropout, source)
        self.dropout = Dropout(dropout, source)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = FeedForward(width, dropout, function, source)

    def forward(self, x: Tensor, bias: Tensor, read: slice | None = None) -> Tensor:
        """Return `(B, T, d)`, or `(B, R, d)` for the tokens `read`; see `CausalSelfAttention.forward`."""
        x = self.attend(x, bias, read)
        output: Tensor = x + self.mlp(self.norm_mlp(x))
        return output

    def attend(self, x: Tensor, bias: Tensor, read: slice | None = None) -> Tensor:
        """Return what the attention leaves, as `forward` does."""
        attended: Tensor = self.dropout(self.attention(self.norm_attention(x), bias, read))  # (B, R, d)
        return (x if read is None else x[:, read]) + attended
