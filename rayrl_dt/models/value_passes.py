"""Forward and backward passes of the critics' networks, written out.

The networks are small and asked thousands of times, so what costs is what stands around the products: with autograd a
gradient step of a critic takes half as long again, and an action gradient twice as long. Nothing here touches
autograd, a parameter or its `.grad`, so it works under `torch.inference_mode` too.

Shape legend: N rows, I inputs, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.errors import UserError

__all__ = ["Layers", "Pass", "forward", "input_gradients", "layers_of", "parameter_gradients"]


class Layers(NamedTuple):
    """Weights of a network I -> H -> H -> 1 with ReLU, or their gradients, in the order of its parameters."""

    first_weight: Tensor  # (H, I)
    first_bias: Tensor  # (H,)
    second_weight: Tensor  # (H, H)
    second_bias: Tensor  # (H,)
    last_weight: Tensor  # (1, H)
    last_bias: Tensor  # (1,)


class Pass(NamedTuple):
    """What a backward pass needs of a forward pass."""

    first: Tensor  # (N, H) float32, after the ReLU
    first_rounded: Tensor  # (N, H), as it entered the second layer
    second_weight: Tensor  # (H, H), as it was used
    second: Tensor  # (N, H) float32, after the ReLU
    values: Tensor  # (N,) float32


def layers_of(network: nn.Sequential) -> Layers:
    """Returns the weights of a network, detached but shared: they follow training.

    Raises:
        UserError: it is not two hidden layers with ReLU and nothing else, as with `layer_norm`.
    """
    kinds = [type(module) for module in network]
    if kinds != [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise UserError(f"a critic of {names} has no action gradient; use one without layer_norm")
    return Layers(*(parameter.detach() for parameter in network.parameters()))


def forward(layers: Layers, inputs: Tensor, dtype: torch.dtype = torch.float32) -> Pass:
    """Values rows.

    Args:
        layers: of the network.
        inputs: `(N, I)` float32.
        dtype: of the product of the second layer, which is nearly all of the work. The others stay in float32: a value
            of 300 in bf16 would be off by 1.
    """
    first = functional.linear(inputs, layers.first_weight, layers.first_bias).relu_()
    rounded, weight = first.to(dtype), layers.second_weight.to(dtype)
    second = functional.linear(rounded, weight, layers.second_bias.to(dtype)).relu_().float()
    return Pass(first, rounded, weight, second, torch.addmv(layers.last_bias, second, layers.last_weight[0]))


def parameter_gradients(layers: Layers, passed: Pass, inputs: Tensor, slopes: Tensor, into: Layers) -> None:
    """Overwrites `into` with the gradient of a loss with respect to the weights.

    Args:
        layers: of the network.
        passed: of `forward` with `inputs`.
        inputs: `(N, I)`.
        slopes: `(N,)` of the loss with respect to the values.
        into: one tensor for each of the weights.
    """
    torch.mv(passed.second.t(), slopes, out=into.last_weight[0])
    torch.sum(slopes, 0, keepdim=True, out=into.last_bias)
    second = _through_relu(torch.outer(slopes, layers.last_weight[0]), passed.second)
    torch.sum(second, 0, out=into.second_bias)
    second = second.to(passed.second_weight.dtype)
    into.second_weight.copy_(second.t() @ passed.first_rounded)
    first = _through_relu((second @ passed.second_weight).float(), passed.first)
    # This way round takes half the time of first.t() @ inputs.
    into.first_weight.copy_((inputs.t() @ first).t())
    torch.sum(first, 0, out=into.first_bias)


def input_gradients(layers: Layers, passed: Pass, *, skip: int = 0) -> Tensor:
    """Returns the gradient of each row's value with respect to its inputs from column `skip` on, `(N, I - skip)`."""
    rows = len(passed.values)
    second = _through_relu(layers.last_weight.expand(rows, -1), passed.second).to(passed.second_weight.dtype)
    first = _through_relu((second @ passed.second_weight).float(), passed.first)
    return first @ layers.first_weight[:, skip:]


def _through_relu(gradient: Tensor, activations: Tensor) -> Tensor:
    """The gradient where the ReLU passed something on, zero elsewhere."""
    passed: Tensor = torch.ops.aten.threshold_backward(gradient, activations, 0)
    return passed
