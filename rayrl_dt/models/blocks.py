"""Causal self-attention and the pre-norm transformer block, with the last layer read only where needed.

Shape legend: B batch, T tokens, R tokens that are read, d width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.models.dropout import Dropout, DropoutSource, activation

__all__ = ["Block", "CausalSelfAttention", "attention_bias"]


def attention_bias(mask: Tensor | None, tokens: int, tokens_per_step: int, like: Tensor) -> Tensor:
    """Returns the additive causal and padding bias, `(1 or B, 1, T, T)`: 0 where visible, -inf elsewhere.

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
    bias = future + pads.repeat_interleave(tokens_per_step, dim=1)[:, None, None, :]
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    return bias


class CausalSelfAttention(nn.Module):
    """Multi-head attention with one fused projection; queries may be a subset of the tokens."""

    def __init__(self, width: int, heads: int, dropout: float, source: DropoutSource) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.weight_dropout = Dropout(dropout, source)

    def forward(self, x: Tensor, bias: Tensor, read: slice | None = None) -> Tensor:
        """Attends.

        Args:
            x: `(B, T, d)`.
            bias: `(1 or B, 1, T, T)` from `attention_bias`.
            read: the tokens whose output is wanted; None for all.

        Returns:
            `(B, T or R, d)`.
        """
        width = x.shape[-1]
        if read is None:
            q, k, v = torch.split(self.qkv(x), width, dim=-1)
        elif self._few(len(range(x.shape[1])[read]), x):
            few: Tensor = self.out(self._merge(self._read_few(x, bias[:, :, read], read)))
            return few
        else:
            q = functional.linear(x[:, read], self.qkv.weight[:width], self.qkv.bias[:width])
            both = functional.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
            k, v = torch.split(both, width, dim=-1)
            bias = bias[:, :, read]
        attended = self._attend(self._split(q), self._split(k), self._split(v), bias)
        output: Tensor = self.out(self._merge(attended))
        return output

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        dropping = self.training and self.weight_dropout.p > 0.0
        if q.device.type != "cpu" and not dropping:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        # SDPA would draw its dropout from the global generator. On a CPU, and for windows as short as these, it also
        # takes longer than plain products.
        bias = bias.to(q.dtype).expand(*q.shape[:2], -1, -1).flatten(0, 1)
        weights = self._weights(q.flatten(0, 1), k.flatten(0, 1), bias)
        attended = torch.bmm(weights.to(v.dtype), v.flatten(0, 1))
        return torch.unflatten(attended, 0, (-1, self.heads))

    def _few(self, reads: int, x: Tensor) -> bool:
        """Whether `_read_few` takes fewer multiplications than projecting each token to its key and value."""
        _, tokens, width = x.shape
        return x.device.type == "cpu" and (tokens - reads) * width > (self.heads - 1) * reads * tokens

    def _read_few(self, x: Tensor, bias: Tensor, read: slice) -> Tensor:
        """Attends from a few tokens, without a key or value for each token; returns `(B, H, R, d / H)`.

        q·(Wk x + bk) is (q Wk)·x plus a constant of the query, which the softmax ignores; and sum w (Wv x + bv) is
        Wv (sum w x) + bv sum w.
        """
        width = x.shape[-1]
        w_q, w_k, w_v = torch.split(self.qkv.weight, width)
        b_q, _, b_v = torch.split(self.qkv.bias, width)
        q = self._split(functional.linear(x[:, read], w_q, b_q))
        q = torch.matmul(q, torch.unflatten(w_k, 0, (self.heads, -1))).flatten(1, 2)  # (B, H * R, d)
        bias = bias.to(q.dtype).expand(-1, self.heads, -1, -1).flatten(1, 2).expand(len(q), -1, -1)
        weights = self._weights(q, x.to(q.dtype), bias)
        mixed = torch.bmm(weights.to(q.dtype), x.to(q.dtype))
        mixed = torch.unflatten(mixed, 1, (self.heads, -1))  # (B, H, R, d)
        values = torch.matmul(mixed, torch.unflatten(w_v, 0, (self.heads, -1)).transpose(-2, -1))
        totals = torch.unflatten(weights.sum(dim=-1, keepdim=True), 1, (self.heads, -1))
        return values + (totals * torch.unflatten(b_v, 0, (self.heads, 1, -1))).to(values.dtype)

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        """Attention weights after dropout, for flat batches of queries, keys and biases."""
        scale = 1.0 / math.sqrt(self.out.in_features // self.heads)
        scores = torch.baddbmm(bias, q, k.transpose(-2, -1), alpha=scale)
        weights: Tensor = self.weight_dropout(scores.softmax(dim=-1))
        return weights

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)


class Block(nn.Module):
    """Pre-norm GPT-2 block: x + attention(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, heads: int, dropout: float, function: str, source: DropoutSource) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, dropout, source)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout, source)
        self.function = activation(function)

    def forward(self, x: Tensor, bias: Tensor, read: slice | None = None) -> Tensor:
        """Returns `(B, T, d)`, or `(B, R, d)` for the tokens `read`; see `CausalSelfAttention.forward`."""
        attended = self.dropout(self.attention(self.norm_attention(x), bias, read))
        x = (x if read is None else x[:, read]) + attended
        # Flat, because autograd copies views that are changed in place, as ReLU does.
        hidden = self.function(self.expand(self.norm_mlp(x).flatten(0, 1)))
        output: Tensor = x + self.dropout(self.contract(hidden)).view(x.shape)
        return output
