"""Forward and backward passes of the critics' networks, written out.

The networks are small and asked thousands of times, so what costs is what stands around the products: with autograd a
gradient step of a critic takes half as long again, and an action gradient twice as long. Nothing here touches
autograd, a parameter or its `.grad`, so it works under `torch.inference_mode` too.

Shape legend: N rows, I inputs, H hidden units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rayrl_dt.errors import UserError

__all__ = [
    "Layers",
    "Memory",
    "Pass",
    "forward",
    "input_gradients",
    "layers_of",
    "memory_for",
    "parameter_gradients",
    "values_of",
]


class Layers(NamedTuple):
    """Weights of a network I -> H -> H -> 1 with ReLU, or their gradients, in the order of its parameters."""

    first_weight: Tensor  # (H, I)
    first_bias: Tensor  # (H,)
    second_weight: Tensor  # (H, H)
    second_bias: Tensor  # (H,)
    last_weight: Tensor  # (1, H)
    last_bias: Tensor  # (1,)


class Memory(NamedTuple):
    """What the passes of networks of one size work in, one after the other.

    Memory in use is in the cache, fresh memory is not: a training step on the same memory throughout takes a
    twentieth less.
    """

    first: Tensor  # (N, H) float32, after the ReLU
    first_rounded: Tensor  # (N, H)
    second_weight: Tensor  # (H, H)
    second_product: Tensor  # (N, H)
    second: Tensor  # (N, H) float32, after the ReLU
    slopes_rounded: Tensor  # (N, H)


class Pass(NamedTuple):
    """What a backward pass needs of a forward pass.

    It holds until the next forward pass in its memory, and for one backward pass, which overwrites it; only the values
    last.
    """

    memory: Memory
    first_rounded: Tensor  # (N, H), as it entered the second layer
    second_weight: Tensor  # (H, H), as it was used
    values: Tensor  # (N,) float32


def layers_of(network: nn.Sequential) -> Layers:
    """Return the weights of a network, detached but shared: they follow training.

    Raises:
        UserError: it is not two hidden layers with ReLU and nothing else, as with `layer_norm`.
    """
    kinds = [type(module) for module in network]
    if kinds != [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise UserError(f"a critic of {names} has no action gradient; use one without layer_norm")
    return Layers(*(parameter.detach() for parameter in network.parameters()))


def memory_for(layers: Layers, rows: int, dtype: torch.dtype = torch.float32) -> Memory:
    """Return memory for passes.

    Args:
        layers: of any of the networks.
        rows: N.
        dtype: of the products of the second layer, which are nearly all of the work. The others stay in float32: a
            value of 300 in bf16 would be off by 1.
    """
    hidden, exact = len(layers.first_bias), layers.first_bias

    def fresh(length: int, dtype: torch.dtype) -> Tensor:
        return exact.new_empty(length, hidden, dtype=dtype)

    return Memory(
        first=fresh(rows, exact.dtype),
        first_rounded=fresh(rows, dtype),
        second_weight=fresh(hidden, dtype),
        second_product=fresh(rows, dtype),
        second=fresh(rows, exact.dtype),
        slopes_rounded=fresh(rows, dtype),
    )


def forward(layers: Layers, inputs: Tensor, memory: Memory | None = None) -> Pass:
    """Values rows.

    Args:
        layers: of the network.
        inputs: `(N, I)` float32.
        memory: for N rows; fresh and in float32 where none is given. Passes in it end here.
    """
    if memory is None:
        memory = memory_for(layers, len(inputs))
    first = torch.addmm(layers.first_bias, inputs, layers.first_weight.t(), out=memory.first).relu_()
    rounded = _rounded(first, memory.first_rounded)
    weight = _rounded(layers.second_weight, memory.second_weight)
    product = torch.mm(rounded, weight.t(), out=memory.second_product)
    # Bias and ReLU take a quarter of the time in float32 that they take in bf16.
    second = memory.second.copy_(product).add_(layers.second_bias).relu_()
    return Pass(memory, rounded, weight, torch.addmv(layers.last_bias, second, layers.last_weight[0]))


def parameter_gradients(layers: Layers, passed: Pass, inputs: Tensor, slopes: Tensor, into: Layers) -> None:
    """Overwrite `into` with the gradient of a loss with respect to the weights.

    Args:
        layers: of the network.
        passed: of `forward` with `inputs`; used up.
        inputs: `(N, I)`.
        slopes: `(N,)` of the loss with respect to the values.
        into: one tensor for each of the weights.
    """
    torch.mv(passed.memory.second.t(), slopes, out=into.last_weight[0])
    torch.sum(slopes, 0, keepdim=True, out=into.last_bias)
    second = _second_slopes(layers, passed).mul_(slopes[:, None])
    torch.sum(second, 0, out=into.second_bias)
    rounded = _rounded(second, passed.memory.slopes_rounded)
    into.second_weight.copy_(rounded.t() @ passed.first_rounded)
    first = _first_slopes(passed, rounded)
    # This way round takes half the time of first.t() @ inputs.
    into.first_weight.copy_((inputs.t() @ first).t())
    torch.sum(first, 0, out=into.first_bias)


def input_gradients(layers: Layers, passed: Pass, *, skip: int = 0) -> Tensor:
    """Return the gradient of each row's value with respect to its inputs from column `skip` on, `(N, I - skip)`.

    Args:
        layers: of the network.
        passed: of `forward`; used up.
        skip: columns to leave out.
    """
    second = _rounded(_second_slopes(layers, passed), passed.memory.slopes_rounded)
    return _first_slopes(passed, second) @ layers.first_weight[:, skip:]


def _rounded(values: Tensor, into: Tensor) -> Tensor:
    """Values in the dtype of `into`: there, or as they are where that is their own."""
    return values if values.dtype == into.dtype else into.copy_(values)


def _second_slopes(layers: Layers, passed: Pass) -> Tensor:
    """Slopes of the values with respect to the second layer, `(N, H)`, in the place of its output."""
    second = passed.memory.second
    return _through_relu_(layers.last_weight, second, into=second)


def _first_slopes(passed: Pass, second_slopes: Tensor) -> Tensor:
    """Slopes with respect to the first layer, `(N, H)`, in the place of those of the second one."""
    memory = passed.memory
    slopes = memory.second.copy_(torch.mm(second_slopes, passed.second_weight, out=memory.second_product))
    return _through_relu_(slopes, memory.first, into=slopes)


def _through_relu_(gradient: Tensor, activations: Tensor, *, into: Tensor) -> Tensor:
    """Return the gradient where the ReLU passed something on, zero elsewhere."""
    torch.ops.aten.threshold_backward.grad_input(gradient, activations, 0, grad_input=into)
    return into


def values_of(layers: Layers, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values `(N,)` of rows, with gradients for the inputs and the weights that require them.

    Args:
        layers: of the network.
        inputs: `(N, I)` float32.
        dtype: of the products of the second layer, forward and backward; see `memory_for`.
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
            """Return the forward pass, which serves once; another one after that."""
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
