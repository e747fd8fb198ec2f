"""Decision ConvFormer's own invariants; those that it shares are in test_sequence_model.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, pad, random_window
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.convformer import ConvFormerTrunk, TokenConvolution
from rayrl_dt.models.dropout import Dropout
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
K, WIDTH = 8, 16
FIELDS = ("returns_to_go", "observations", "actions")
"""In the order of the tokens of a step."""
ALL, STATES = slice(None), slice(1, 2)


def build(store: TrajectoryStore, **config: Any) -> SequenceModel:
    return build_model(store, backbone="convformer", **{"context_length": K, **config})


def trunk_of(model: SequenceModel) -> ConvFormerTrunk:
    assert isinstance(model.trunk, ConvFormerTrunk)
    return model.trunk


def outputs(model: SequenceModel, window: Window[Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(window, **options)


def garbled(window: Window[Tensor], name: str, steps: slice) -> Window[Tensor]:
    values = getattr(window, name).clone()
    values[:, steps] = -values[:, steps] + (0 if name == "actions" else 3)
    return replace(window, **{name: values})


def with_conv1d(convolution: TokenConvolution, x: Tensor) -> Tensor:
    """`(B, K, M, d)` by one whole convolution for each kind, kept at the tokens of the kind."""
    window, _, width = convolution.weight.shape
    sequence = functional.pad(x.flatten(1, 2).transpose(1, 2), (window - 1, 0))
    kept = []
    for number, kind in enumerate(range(3)[convolution.kinds]):
        kernel, bias = convolution.weight[:, number].t()[:, None], convolution.bias[number]
        everywhere = functional.conv1d(sequence, kernel, bias, groups=width)
        kept.append(everywhere[:, :, kind::3].transpose(1, 2))
    return torch.stack(kept, dim=2)


@pytest.mark.parametrize("window", [1, 2, 5, 6, 40])
@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("kinds", [ALL, STATES], ids=["all", "states"])
def test_filters_are_depthwise_conv1d_at_their_own_tokens(window: int, steps: int, kinds: slice) -> None:
    torch.manual_seed(0)
    convolution = TokenConvolution(WIDTH, window, kinds)
    gradients = []
    x = torch.randn(3, steps, 3, WIDTH, requires_grad=True)
    for result in (convolution(x), with_conv1d(convolution, x)):
        assert result.shape == (3, steps, 3 if kinds == ALL else 1, WIDTH)
        weights = torch.arange(result.numel()).view(result.shape).sin()
        gradients.append(
            (result, *torch.autograd.grad((result * weights).sum(), [x, *convolution.parameters()]))
        )
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("window", [1, 3, 6])
def test_a_filter_sees_as_many_tokens_as_it_has_taps(kind: int, window: int) -> None:
    torch.manual_seed(0)
    convolution = TokenConvolution(WIDTH, window, ALL)
    x = torch.randn(1, K, 3, WIDTH)
    reader = 3 * 4 + kind
    for token in range(3 * K):
        moved = x.clone()
        moved.view(1, 3 * K, WIDTH)[:, token] += 1
        with torch.no_grad():
            change = (convolution(moved) - convolution(x)).flatten(1, 2)[0, reader]
        behind = reader - token
        # Depthwise: each channel moves by exactly the weight of its own tap.
        tap = convolution.weight[window - 1 - behind, kind] if 0 <= behind < window else torch.zeros(WIDTH)
        torch.testing.assert_close(change, tap.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 6])
def test_layers_reach_as_far_as_their_filters_together(
    make_store: MakeStore, layers: int, window: int
) -> None:
    model = build(make_store(), num_layers=layers, conv_window=window)
    whole = random_window(model, [K, K])
    expected = outputs(model, whole)[:, -1]
    reader = 3 * (K - 1) + 1
    for kind, name in enumerate(FIELDS):
        for step in range(K):
            behind = reader - (3 * step + kind)
            change = outputs(model, garbled(whole, name, slice(step, step + 1)))[:, -1] - expected
            assert bool(change.abs().max() > 1e-6) == (0 <= behind <= layers * (window - 1)), (name, step)


@pytest.mark.parametrize(
    ("layers", "window"), [(1, 1), (1, 2), (1, 3), (2, 3), (3, 4), (2, 6), (3, 6), (3, 40)]
)
def test_acting_computes_the_steps_that_matter_and_no_others(
    make_store: MakeStore, layers: int, window: int
) -> None:
    model = build(make_store(), num_layers=layers, conv_window=window)
    whole = random_window(model, [K, K])
    entered: list[int] = []
    trunk_of(model).embed_norm.register_forward_pre_hook(lambda _, args: entered.append(args[0].shape[1]))
    last = outputs(model, whole, last_only=True)
    torch.testing.assert_close(last, outputs(model, whole)[:, -1:], rtol=1e-5, atol=1e-5)
    steps = entered[0]
    assert entered == [steps, K]
    oldest = slice(K - steps, K - steps + 1)
    changes = [outputs(model, garbled(whole, name, oldest), last_only=True) - last for name in FIELDS]
    assert max(float(change.abs().max()) for change in changes) > 1e-6


def test_convolutions_see_zeros_at_padding_and_nowhere_else(make_store: MakeStore) -> None:
    model = build(make_store())
    window = pad(random_window(model, [3, K, 1]), 7.0)
    seen: list[Tensor] = []
    for block in trunk_of(model).blocks:
        block.convolution.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outputs(model, window)
    assert len(seen) == 2
    for x in seen:
        assert torch.equal((x != 0).any(dim=-1), window.mask[:, :, None].expand(-1, -1, 3))


def test_the_trunk_is_what_its_authors_describe(make_store: MakeStore) -> None:
    """Against a plain version of it: whole convolutions, every token of every layer."""
    model = build(make_store())
    trunk = trunk_of(model)
    inputs = model.inputs(random_window(model, [K, K]))
    with torch.no_grad():
        position = trunk.embed_timestep(inputs.timesteps)
        tokens = [
            trunk.embed_return(inputs.returns_to_go) + position,
            trunk.embed_observation(inputs.observations) + position,
            trunk.embed_action(inputs.actions) + position,
        ]
        x = trunk.embed_norm(torch.stack(tokens, dim=2))
        for block in trunk.blocks:
            kinds = block.convolution.kinds
            x = x[:, :, kinds] + with_conv1d(block.convolution, block.norm_convolution(x))
            hidden = functional.gelu(block.mlp.expand(block.norm_mlp(x)))
            x = x + block.mlp.contract(hidden)
        expected = trunk.final_norm(x[:, :, 0])
        torch.testing.assert_close(trunk(inputs), expected, rtol=1e-4, atol=1e-5)


def test_timesteps_are_those_of_the_episode(make_store: MakeStore) -> None:
    model = build(make_store())
    window = random_window(model, [K])
    rows = model.spec.model.max_episode_steps
    at = [replace(window, timesteps=torch.full((1, K), step)) for step in (rows - 2, rows - 1, 10**6)]
    results = [outputs(model, moved) for moved in at]
    assert torch.equal(results[1], results[2])
    assert (results[0] - results[1]).abs().max() > 1e-3


@pytest.mark.parametrize("window", [1, 6])
def test_parameters(make_store: MakeStore, window: int) -> None:
    model = build(make_store(), num_layers=3, conv_window=window)
    shapes = [
        (tuple(block.convolution.weight.shape), tuple(block.convolution.bias.shape))
        for block in trunk_of(model).blocks
    ]
    whole, states = ((window, 3, WIDTH), (3, WIDTH)), ((window, 1, WIDTH), (1, WIDTH))
    assert shapes == [whole, whole, states], "of the last layer, only the states are read"
    attention = sum(p.numel() for p in build_model(make_store(), num_layers=3, context_length=K).parameters())
    projections = 3 * (4 * WIDTH * WIDTH + 4 * WIDTH)
    filters = 7 * (window + 1) * WIDTH
    assert sum(p.numel() for p in model.parameters()) == attention - projections + filters


def test_initialization_follows_the_authors(make_store: MakeStore) -> None:
    spec = build(make_store(actions=50), embed_dim=64, max_episode_steps=200).spec
    torch.manual_seed(0)
    model = SequenceModel(spec)
    # N(0, 0.02) for the linear layers of the blocks; PyTorch's own start for embeddings and head.
    scaled = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding):
            assert layer.weight.detach().std().item() == pytest.approx(1.0, rel=0.1), name
        elif isinstance(layer, nn.Linear) and "blocks" in name:
            assert layer.weight.detach().std().item() == pytest.approx(0.02, rel=0.05), name
            assert not layer.bias.any()
            scaled += 1
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            assert layer.weight.detach().std().item() == pytest.approx(bound / np.sqrt(3), rel=0.2), name
            assert 0.6 * bound < layer.bias.abs().max() <= bound
        elif isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
    assert scaled == 2 * 2, "MLPs"
    bound = 1 / np.sqrt(6)
    for block in trunk_of(model).blocks:
        for parameter in (block.convolution.weight, block.convolution.bias):
            assert 0.9 * bound < parameter.abs().max() <= bound
            assert parameter.detach().std().item() == pytest.approx(bound / np.sqrt(3), rel=0.2)


@pytest.mark.parametrize("options", [{}, {"actions": 4}, {"actions": 4, "first_action": -9}])
def test_every_parameter_is_trained(make_store: MakeStore, options: dict[str, int]) -> None:
    model = build(make_store(**options), num_layers=3)
    window = random_window(model, [K, 4])
    loss = losses.masked_mse if model.spec.head.continuous else losses.cross_entropy
    loss(model(window), model.to_model_actions(window.actions), window.mask).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        if "convolution" in name:
            assert (parameter.grad.abs().amax(dim=-1) > 0).all(), f"{name}: each tap of each filter"


def test_dropout_is_ours_and_in_every_place(make_store: MakeStore) -> None:
    model = build(make_store(), dropout=0.5).train()
    window = random_window(model, [K, K])
    places = {name: layer for name, layer in model.named_modules() if isinstance(layer, Dropout)}
    assert set(places) == {
        "trunk.embed_dropout",
        "trunk.blocks.0.mlp.dropout",
        "trunk.blocks.1.mlp.dropout",
    }
    assert not any(isinstance(layer, nn.Dropout) for layer in model.modules())
    zeros: list[float] = []
    for layer in places.values():
        layer.register_forward_hook(lambda _, __, output: zeros.append(float((output == 0).float().mean())))
    model.reseed(1)
    first = outputs(model, window)
    assert zeros == pytest.approx([0.5] * 3, abs=0.15)
    model.reseed(2)
    assert (outputs(model, window) - first).abs().max() > 1e-3
    model.reseed(1)
    assert torch.equal(outputs(model, window), first)
