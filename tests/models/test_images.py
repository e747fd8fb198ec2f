"""The networks of images, held to the authors' written out plainly, with weights that hide nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import scramble
from image_data import image_store
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.data import windows
from rayrl_dt.errors import UserError
from rayrl_dt.models.encoders import ImageEncoder, ImpalaEncoder, encoder_of
from rayrl_dt.models.images import ImageNetwork
from rayrl_dt.models.impala import ImpalaNetwork
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec

SIZES = {"context_length": 5, "embed_dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.0}


def bytes_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def plain(network: nn.Module, images: Tensor) -> Tensor:
    """The authors' form: floats from 0 to 1, one layer after the other."""
    x = images.reshape(-1, *images.shape[-3:]).to(network.layers[0].weight.dtype) / 255
    for layer in network.layers:
        x = functional.relu(functional.conv2d(x, layer.weight, layer.bias, layer.stride))
    return x.flatten(1)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """Weights that hide nothing make large numbers, of which differences are small ones."""
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("shape", "filters"),
    [
        ((4, 84, 84), 3),
        ((1, 36, 36), 3),
        ((3, 40, 50), 3),
        ((4, 96, 128), 3),
        ((2, 7, 9), 2),
        ((1, 10, 12), 2),
    ],
)
def test_networks_equal_the_plain_form_in_values_and_gradients(shape: tuple[int, ...], filters: int) -> None:
    network = ImageNetwork(*shape)
    scramble(network)
    assert len(network.layers) == filters
    images = bytes_of(2, 3, *shape)
    found = network(images)
    assert found.shape == (2, 3, network.features)
    wanted = plain(network, images)
    assert_near(found.flatten(0, 1), wanted)
    weight = network.layers[0].weight
    gradients = [torch.autograd.grad(each.square().mean(), weight)[0] for each in (found, wanted)]
    assert_near(*gradients)


def test_weights_have_the_papers_shape() -> None:
    network = ImageNetwork(4, 84, 84)
    shapes = [tuple(layer.weight.shape) for layer in network.layers]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert network.features == 3136


def test_views_that_overlap_are_read_as_copies_are() -> None:
    frames = bytes_of(3, 8, 84, 84)
    views = torch.from_numpy(windows.stacks(frames.numpy(), 4))
    network = ImageNetwork(4, 84, 84)
    torch.testing.assert_close(network(views), network(views.contiguous()), rtol=0, atol=0)
    shifted = bytes_of(3 * 4 * 84 * 84 + 1)[1:].reshape(3, 4, 84, 84)  # not on a boundary of four bytes
    torch.testing.assert_close(network(shifted), network(shifted.clone()), rtol=0, atol=0)


def test_autocast_reads_every_byte_exactly() -> None:
    network = ImageNetwork(4, 84, 84)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(bytes_of(2, 4, 84, 84))
    assert found.dtype == torch.bfloat16
    wanted = network(bytes_of(2, 4, 84, 84))
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.01)


def test_channels_may_come_last() -> None:
    encoder = ImageEncoder(gym.spaces.Box(0, 255, (40, 50, 3), np.uint8))
    first = ImageEncoder(gym.spaces.Box(0, 255, (3, 40, 50), np.uint8))
    first.load_state_dict(encoder.state_dict())
    images = bytes_of(2, 5, 40, 50, 3)
    torch.testing.assert_close(encoder(images), first(images.movedim(-1, -3)), rtol=0, atol=0)


def plain_impala(network: Any, images: Tensor) -> Tensor:
    """IMPALA's network from its description, layer by layer."""
    x = images.reshape(-1, *images.shape[-3:]).double() / 255
    for layer, blocks in zip(network.layers, network.blocks, strict=True):
        x = functional.max_pool2d(functional.conv2d(x, layer.weight, layer.bias, padding=1), 3, 2, 1)
        for block in blocks:
            y = functional.conv2d(x.clamp(min=0), block.first.weight, block.first.bias, padding=1)
            x = x + functional.conv2d(y.clamp(min=0), block.second.weight, block.second.bias, padding=1)
    return x.clamp(min=0).flatten(1)


@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 33, 40)])
def test_impalas_network_equals_its_description(shape: tuple[int, ...]) -> None:
    network = ImpalaNetwork(*shape).double()
    images = bytes_of(2, 2, *shape)
    found = network(images)
    assert found.shape == (2, 2, network.features)
    torch.testing.assert_close(found.flatten(0, 1), plain_impala(network, images), rtol=1e-6, atol=1e-9)


def test_the_encoder_is_a_choice() -> None:
    store = image_store()
    model = model_of(store, encoder="impala")
    trunk: Any = model.trunk
    assert type(trunk.embed_observation.encoder) is ImpalaEncoder and model.spec.model.embeddings == "atari"
    with torch.no_grad():
        assert model(full_windows(store, model)).shape == (4, 5, 3)
    with pytest.raises(
        UserError, match=r"encoder is 'vector', and observations .*use 'image', 'impala', 'auto'"
    ):
        model_of(store, encoder="vector")
    with pytest.raises(UserError, match="encoder is 'resnet'"):
        ModelConfig(encoder="resnet")


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"images of 6 x 6 pixels are too small .*FlattenObservation"):
        ImageNetwork(4, 6, 6)
    with pytest.raises(UserError, match=r"float32 of shape \(84, 84\) cannot be read"):
        encoder_of(gym.spaces.Box(0, 1, (84, 84), np.float32))


def author_dt(model: SequenceModel, window: Any) -> Tensor:
    """The forward pass of Decision Transformer for Atari (minGPT), for windows without padding."""
    w = model.state_dict()
    size, heads = model.spec.model.embed_dim, model.spec.model.num_heads
    network: Any = model.trunk.embed_observation.encoder.network
    batch, steps = window.mask.shape

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (size,), w[f"{name}.weight"], w[f"{name}.bias"])

    features = plain(network, window.observations).reshape(batch, steps, -1)
    states = torch.tanh(linear(features, "trunk.embed_observation"))
    returns = torch.tanh(
        linear(window.returns_to_go.double() / model.spec.return_scale, "trunk.embed_return")
    )
    actions = torch.tanh(functional.embedding(window.actions, w["trunk.embed_action.weight"]))
    x = states.new_zeros(batch, 3 * steps, size)
    x[:, 0::3], x[:, 1::3], x[:, 2::3] = returns, states, actions
    whole = w["trunk.positions.window.weight"][window.timesteps[:, :1]]  # (B, 1, d)
    x = x + w["trunk.positions.slots"].reshape(1, -1, size)[:, : 3 * steps] + whole
    for layer in range(model.spec.model.num_layers):
        name = f"trunk.blocks.{layer}"
        q, k, v = (
            each.reshape(batch, -1, heads, size // heads).transpose(1, 2)
            for each in linear(norm(x, f"{name}.norm_attention"), f"{name}.attention.qkv").chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / (size // heads) ** 0.5
        hidden = torch.ones(3 * steps, 3 * steps).triu(1).bool()
        mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{name}.attention.out")
        inner = functional.gelu(linear(norm(x, f"{name}.norm_mlp"), f"{name}.mlp.expand"))
        x = x + linear(inner, f"{name}.mlp.contract")
    return linear(norm(x, "trunk.final_norm"), "head")[:, 1::3]


def model_of(store: Any, **chosen: Any) -> SequenceModel:
    spec = PolicySpec.from_store(ModelConfig.from_dict({**SIZES, **chosen}), store, return_scale=2.0)
    model = SequenceModel(spec)
    scramble(model)
    return model.eval()


def full_windows(store: Any, model: SequenceModel) -> Any:
    chosen = model.spec.model
    drawn = windows.sample(
        store,
        np.random.default_rng(0),
        4,
        chosen.context_length,
        starts="full",
        frame_stack=chosen.frame_stack,
    )
    assert drawn.mask.all()
    return drawn.to_torch()


def test_decision_transformer_for_atari_equals_the_authors() -> None:
    store = image_store()
    model = model_of(store).double()  # large numbers before each tanh would hide differences otherwise
    assert model.head.bias is None and model.spec.model.activation == "gelu"
    with torch.no_grad():
        window = full_windows(store, model)
        torch.testing.assert_close(model(window), author_dt(model, window), rtol=1e-5, atol=1e-5)


def test_radt_for_atari_equals_its_network_on_embeddings_written_out() -> None:
    """The blocks are held to the authors' elsewhere; here what goes into them is."""
    store = image_store()
    model = model_of(store, backbone="radt").double()
    w = model.state_dict()
    trunk: Any = model.trunk
    window = full_windows(store, model)
    inputs = model.inputs(window)
    features = plain(trunk.embed_observation.encoder.network, window.observations).reshape(4, 5, -1)
    silu = functional.silu(
        functional.linear(features, w["trunk.embed_observation.weight"], w["trunk.embed_observation.bias"])
    )
    whole = w["trunk.window_positions.window.weight"][window.timesteps[:, :1]]
    position = w["trunk.window_positions.slots"][None, :, 0] + whole  # (B, K, d)
    action = functional.embedding(window.actions, w["trunk.embed_action.weight"])
    scaled = functional.linear(
        window.returns_to_go.double() / 2, w["trunk.embed_return.weight"], w["trunk.embed_return.bias"]
    )
    with torch.no_grad():
        tokens, gates, keys, values = trunk.embed(inputs)
    torch.testing.assert_close(tokens[:, :, 0], silu + position, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[:, :, 1], action + position, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gates, functional.silu(scaled), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(keys, functional.layer_norm(scaled + position, (16,)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, functional.layer_norm(scaled, (16,)), rtol=1e-5, atol=1e-5)


def test_pictures_have_normalized_tokens_in_radts_network_for_vectors() -> None:
    store = image_store()
    model = model_of(store, backbone="radt", embeddings="gym").double()
    w, trunk = model.state_dict(), model.trunk
    window = full_windows(store, model)
    features = plain(trunk.embed_observation.encoder.network, window.observations).reshape(4, 5, -1)
    observed = functional.linear(
        features, w["trunk.embed_observation.weight"], w["trunk.embed_observation.bias"]
    )
    position = trunk.embed_position(trunk.positions[window.timesteps])
    with torch.no_grad():
        tokens, *_ = trunk.embed(model.inputs(window))
        normalized = (observed - observed.mean(-1, keepdim=True)) / observed.std(
            -1, correction=0, keepdim=True
        )
    torch.testing.assert_close(tokens[:, :, 0], normalized + position, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["dt", "radt", "no-return"])
def test_padding_shifts_nothing(backbone: str) -> None:
    """A window that is padded on the left is the same shorter window."""
    store = image_store()
    model = model_of(store, backbone=backbone, context_length=6)
    episodes, offsets = np.zeros(1, int), store.lengths[:1] - 3
    padded, short = (
        windows.gather(store, episodes, offsets, steps, frame_stack=4).to_torch() for steps in (6, 3)
    )
    assert padded.mask.sum() == 3
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, -3:], model(short), rtol=1e-5, atol=1e-5)


def test_the_choices_of_images_are_resolved_and_refused() -> None:
    store = image_store()
    spec = model_of(store).spec
    assert (spec.model.frame_stack, spec.model.embeddings, spec.seen_space.shape) == (4, "atari", (4, 40, 40))
    assert PolicySpec.from_json(spec.to_json()).seen_space == spec.seen_space
    assert model_of(store, frame_stack=2, embeddings="gym").spec.seen_space.shape == (2, 40, 40)
    assert model_of(store, backbone="convformer").spec.model.embeddings == "auto"
    with pytest.raises(UserError, match="embeddings 'atari' is for backbone"):
        ModelConfig(backbone="convformer", embeddings="atari")
    channels = image_store(shape=(2, 40, 40))
    assert model_of(channels).spec.seen_space.shape == (2, 40, 40)
    with pytest.raises(UserError, match=r"frame_stack is 4, and the observations .* no single images"):
        model_of(channels, frame_stack=4)
