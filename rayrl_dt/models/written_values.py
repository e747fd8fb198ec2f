"""The written-out passes of `value_passes` as one step of autograd: a network's values, with its own backward.

Autograd then sees one node where a network of two hidden layers would be ten, and the hidden product may be rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayrl_dt.models.value_passes import (
    Layers,
    Pass,
    forward,
    input_gradients,
    memory_for,
    parameter_gradients,
)

__all__ = ["values_of"]


def values_of(layers: Layers, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the values `(N,)` of rows, with gradients for the inputs and the weights that require them.

    Args:
        layers: of the network.
        inputs: `(N, I)` float32.
        dtype: of the products of the second layer, forward and backward; see `value_passes.memory_for`.
    """
    # torch leaves `apply` and the decorator below without types.
    values: Tensor = _Values.apply(inputs, dtype, *layers)  # type: ignore[no-untyped-call]
    return values


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, *weights)
        ctx.dtype = dtype
        passed = _pass(Layers(*weights), inputs, dtype)
        # Without the output: a node that holds what leaves it is never freed.
        ctx.passed = passed._replace(values=inputs.new_empty(0))
        return passed.values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *weights = ctx.saved_tensors
        layers = Layers(*weights)

        def passed() -> Pass:
            """The forward pass, which serves once; another one after that."""
            kept, ctx.passed = ctx.passed, None
            return _pass(layers, inputs, ctx.dtype) if kept is None else kept

        to_inputs, _, *to_weights = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * len(layers)
        if any(to_weights):
            into = Layers(*map(torch.empty_like, layers))
            parameter_gradients(layers, passed(), inputs, slopes, into)
            found = list(into)
        return (slopes[:, None] * input_gradients(layers, passed()) if to_inputs else None), None, *found


def _pass(layers: Layers, inputs: Tensor, dtype: torch.dtype) -> Pass:
    return forward(layers, inputs, memory_for(layers, len(inputs), dtype))
