"""Acting with the Return-Aligned Decision Transformer.

Kept of each step: its embedded tokens, and their queries, keys and values in the first layer; and for every layer, the
keys and values of SeqRA and the scales and shifts of StepRA. That is exact: the former are functions of the token and
its timestep alone (where norms come first, also of the modulation of its own step), the latter of the step's
return-to-go and timestep, and none of these change while the window slides over the step.

The last layer computes the token that is read.

Shape legend: B batch, K steps, T = 2K tokens, P pairs of scale and shift (one for each norm of a block), d width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayrl_dt.models.radt import RADTBlock, RADTTrunk
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.trunk import TrunkInputs
from rayrl_dt.policy.acting.aligner import aligner_plan
from rayrl_dt.policy.acting.layers import (
    FeedForwardPlan,
    LastTokenAttention,
    NormPlan,
    self_attention_plan,
)
from rayrl_dt.policy.acting.plan import CachedPlan
from rayrl_dt.policy.context import ContextBuffer

__all__ = ["RADTPlan"]

_TOKENS_PER_STEP = 2


class _Returns:
    """What a layer has kept of the returns-to-go.

    Attributes:
        modulation: `(B, K, 2P, d)` 1 + gamma and beta of each pair; absent without StepRA.
        memory: keys and values of SeqRA, `(B, K, d)` and `(B, K, d or 2d)`; empty without it.
    """

    def __init__(self, modulation: Tensor | None, memory: list[Tensor]) -> None:
        self.modulation, self.memory = modulation, memory

    def newest(self) -> _Returns:
        """Return the modulation of the newest step alone; its token still sees the returns of all steps."""
        return _Returns(None if self.modulation is None else self.modulation[:, -1:], self.memory)


class _Layer:
    """A `RADTBlock` for inference."""

    def __init__(self, block: RADTBlock, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.post_norm = block.post_norm
        self.attention = self_attention_plan(block.attention, dtype)
        self.read = LastTokenAttention(block.attention, dtype)
        self.aligner = None if block.aligner is None else aligner_plan(block.aligner, dtype)
        self.mlp = FeedForwardPlan(block.mlp, dtype)
        self.norms = [NormPlan(norm, torch.float32) for norm in block.norms]  # type: ignore[arg-type]
        self._modulation = None
        if block.modulation is not None:
            project = block.modulation.project
            # One more than gamma, in the even chunks, is what scales.
            chunks = torch.arange(2 * block.modulation.pairs).repeat_interleave(project.in_features)
            bias = project.bias.detach() + (chunks % 2 == 0)
            self._modulation = project.weight.detach(), bias

    def keep(self, gates: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
        """Return the modulation and the memory, those that there are, of some steps' returns; see `_Returns`."""
        kept = []
        if self._modulation is not None:
            modulation = functional.linear(gates, *self._modulation)  # (B, K, 2P d) -> (B, K, 2P, d)
            kept.append(torch.unflatten(modulation, -1, (-1, gates.shape[-1])))
        if self.aligner is not None:
            kept += self.aligner.project(keys, values)
        return kept

    def take(self, kept: list[Tensor]) -> _Returns:
        """Take from the front of a list what `keep` returned."""
        modulation = kept.pop(0) if self._modulation is not None else None
        return _Returns(modulation, [kept.pop(0), kept.pop(0)] if self.aligner is not None else [])

    def queries(self, x: Tensor, returns: _Returns) -> Tensor:
        """Return the input of the self-attention for tokens `(B, T, d)`."""
        return (x if self.post_norm else self._norm(0, x, returns)).to(self.dtype)

    def finish(self, x: Tensor, attended: Tensor, returns: _Returns, bias: Tensor) -> Tensor:
        """Return the block's output for its input and the output of the self-attention, `(B, T or 1, d)` each.

        Args:
            x: tokens.
            attended: same shape.
            returns: of the tokens' own steps the modulation, of all steps the memory.
            bias: `(1 or B, T or 1, K)`, the returns that each token sees.
        """
        x = x + attended
        if self.post_norm:
            x = self._norm(0, x, returns)
            if self.aligner is not None:
                x = self._norm(1, x + self._aligned(x, x, returns, bias), returns)
            return self._norm(-1, x + self.mlp(x.to(self.dtype)), returns)
        if self.aligner is not None:
            x = x + self._aligned(self._norm(1, x, returns), x, returns, bias)
        return x + self.mlp(self._norm(-1, x, returns).to(self.dtype))

    def _aligned(self, query: Tensor, stream: Tensor, returns: _Returns, bias: Tensor) -> Tensor:
        assert self.aligner is not None
        key, value = returns.memory
        return self.aligner.align(query.to(self.dtype), stream.to(self.dtype), key, value, bias)

    def _norm(self, index: int, x: Tensor, returns: _Returns) -> Tensor:
        normed = self.norms[index](x)
        if returns.modulation is None:
            return normed
        scale, shift = (
            each[:, :, None] for each in returns.modulation[:, :, 2 * index :][:, :, :2].unbind(2)
        )
        steps = returns.modulation.shape[1]
        # (B, T, d) -> (B, K, tokens, d), scaled and shifted by (B, K, 1, d), and back
        return torch.addcmul(shift, torch.unflatten(normed, 1, (steps, -1)), scale).flatten(1, 2)


class RADTPlan(CachedPlan):
    """Acts with a `RADTTrunk`; see the module's docstring and `CachedPlan`."""

    def __init__(self, model: SequenceModel, context: ContextBuffer, precision: str) -> None:
        trunk = model.trunk
        assert isinstance(trunk, RADTTrunk)
        super().__init__(model, context, precision, _TOKENS_PER_STEP)
        self._trunk = trunk
        self._layers = [_Layer(block, self.dtype) for block in trunk.blocks]  # type: ignore[arg-type]

    def step_values(self, inputs: TrunkInputs) -> list[Tensor]:
        """Return all that is kept; tokens, queries, keys and values are `(N, steps, 2, d)` each."""
        tokens, gates, keys, values = self._trunk.embed(inputs)
        memory = keys.to(self.dtype), values.to(self.dtype)
        kept = [layer.keep(gates, *memory) for layer in self._layers]
        first = self._layers[0]
        queries = first.queries(tokens.flatten(1, 2), first.take(list(kept[0])))
        projected = (
            torch.unflatten(values, 1, (-1, _TOKENS_PER_STEP)) for values in first.attention.project(queries)
        )
        return [tokens, *projected, *(values for each in kept for values in each)]

    def features(self, kept: list[Tensor], mask: Tensor | None) -> Tensor:
        """Return the features at the newest state token; see `CachedPlan.features`."""
        x, *projected = (values.flatten(1, 2) for values in kept[:4])  # (B, K, 2, d) -> (B, T, d)
        rest = kept[4:]
        bias, steps_bias = self.bias(mask, _TOKENS_PER_STEP), self.bias(mask, 1)
        # A state and an action see the returns of the steps up to their own.
        cross_bias = steps_bias.repeat_interleave(_TOKENS_PER_STEP, dim=1)  # (1 or B, K, K) -> (1 or B, T, K)
        for number, layer in enumerate(self._layers[:-1]):
            returns = layer.take(rest)
            if number > 0:
                projected = list(layer.attention.project(layer.queries(x, returns)))
            attended = layer.attention.attend(projected[0], projected[1], projected[2], bias)
            x = layer.finish(x, attended, returns, cross_bias)
        last = self._layers[-1]
        returns = last.take(rest)
        # Without the last action token, which nobody sees.
        source = last.queries(x, returns)[:, :-1]
        attended = last.read(source[:, -1:], source, bias[:, -2:-1, :-1])
        return last.finish(x[:, -2:-1], attended, returns.newest(), steps_bias[:, -1:])
