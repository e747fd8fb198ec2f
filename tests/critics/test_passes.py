"""The written-out passes against autograd."""

from __future__ import annotations

import pytest
import torch
from builders import scramble
from torch import Tensor, nn

from rayrl_dt.critics.passes import (
    Layers,
    forward,
    input_gradients,
    layers_of,
    memory_for,
    parameter_gradients,
)
from rayrl_dt.errors import UserError

N, INPUTS, HIDDEN = 7, 5, 16


@pytest.fixture
def network() -> nn.Sequential:
    built = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
    )
    scramble(built)
    return built


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(N, INPUTS, generator=torch.Generator().manual_seed(1))


def test_values_are_the_networks(network: nn.Sequential, inputs: Tensor) -> None:
    torch.testing.assert_close(forward(layers_of(network), inputs).values, network(inputs)[:, 0].detach())


def test_weights_get_autograds_gradient(network: nn.Sequential, inputs: Tensor) -> None:
    layers, slopes = layers_of(network), torch.linspace(-2, 3, N)
    found = Layers(*(torch.full_like(weight, torch.nan) for weight in layers))
    parameter_gradients(layers, forward(layers, inputs), inputs, slopes, found)
    expected = torch.autograd.grad(network(inputs)[:, 0] @ slopes, list(network.parameters()))
    assert all(gradient.abs().max() > 0.1 for gradient in expected)
    torch.testing.assert_close(tuple(found), expected)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("skip", [0, 3])
def test_inputs_get_autograds_gradient(network: nn.Sequential, inputs: Tensor, skip: int) -> None:
    layers, leaf = layers_of(network), inputs.clone().requires_grad_()
    network(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0.1
    with torch.inference_mode():
        found = input_gradients(layers, forward(layers, inputs), skip=skip)
    torch.testing.assert_close(found.clone(), leaf.grad[:, skip:])


def test_half_precision_is_near(network: nn.Sequential, inputs: Tensor) -> None:
    layers = layers_of(network)
    rough, exact = (
        forward(layers, inputs, memory_for(layers, N, dtype)) for dtype in (torch.bfloat16, torch.float32)
    )
    assert rough.values.dtype == torch.float32
    assert 0 < (rough.values - exact.values).abs().max() < 0.05 * exact.values.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_used_memory_is_as_good_as_fresh(network: nn.Sequential, inputs: Tensor, dtype: torch.dtype) -> None:
    layers, slopes = layers_of(network), torch.linspace(-2, 3, N)
    before = [weight.clone() for weight in layers]
    used = memory_for(layers, N, dtype)
    for tensor in used:
        tensor.fill_(torch.nan)
    found = []
    for memory in (memory_for(layers, N, dtype), used, used):
        gradients = Layers(*(torch.empty_like(weight) for weight in layers))
        passed = forward(layers, inputs, memory)
        parameter_gradients(layers, passed, inputs, slopes, gradients)
        found.append([*gradients, input_gradients(layers, forward(layers, inputs, memory)), passed.values])
    for again in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], again, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, layers, strict=True))


def test_layers_follow_training(network: nn.Sequential, inputs: Tensor) -> None:
    layers = layers_of(network)
    with torch.no_grad():
        network[-1].bias += 1.0
    torch.testing.assert_close(forward(layers, inputs).values, network(inputs)[:, 0].detach())


def test_other_networks_are_refused() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(UserError, match=r"LayerNorm.*without layer_norm"):
        layers_of(network)
