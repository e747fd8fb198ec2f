"""StARformer's own invariants; those that it shares are in test_sequence_model.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_model, pad, random_window
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.blocks import Block
from rayrl_dt.models.dropout import Dropout
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.starformer import StARformerTrunk
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
K, STATES, LOCAL = 6, 3, 16
TOKENS = STATES + 2
SPACES: dict[str, dict[str, int]] = {
    "continuous": {},
    "discrete": {"actions": 4},
    "discrete from -9": {"actions": 4, "first_action": -9},
}


@pytest.fixture(params=list(SPACES))
def model(request: pytest.FixtureRequest, make_store: MakeStore) -> SequenceModel:
    return build(make_store(**SPACES[request.param]))


def build(store: TrajectoryStore, **config: Any) -> SequenceModel:
    return build_model(store, backbone="starformer", **config)


def trunk_of(model: SequenceModel) -> StARformerTrunk:
    assert isinstance(model.trunk, StARformerTrunk)
    return model.trunk


def outputs(model: SequenceModel, window: Window[Tensor]) -> Tensor:
    with torch.no_grad():
        return model(window)


def changed(model: SequenceModel, window: Window[Tensor], name: str, step: int) -> Window[Tensor]:
    """The window with another value of one field at one step."""
    values = getattr(window, name).clone()
    if name != "actions":
        values[:, step] += 3
    elif not model.spec.head.continuous:
        start = int(model.spec.action_space.start)
        values[:, step] = start + (values[:, step] - start + 1) % model.spec.action_size
    else:
        values[:, step] = -values[:, step]
    return replace(window, **{name: values})


def calls(model: SequenceModel, module: nn.Module, window: Window[Tensor]) -> tuple[tuple[Any, ...], Any]:
    """Arguments and result of a module's only call in a forward pass."""
    seen: list[tuple[Any, Any]] = []
    handle = module.register_forward_hook(lambda _, args, result: seen.append((args, result)))
    outputs(model, window)
    handle.remove()
    (call,) = seen
    return call


def moved_steps(
    model: SequenceModel, module: nn.Module, window: Window[Tensor], name: str, step: int
) -> set[int]:
    """The steps at which the result `(B * K, ...)` of a module depends on a field at a step."""
    results = [calls(model, module, w)[1] for w in (window, changed(model, window, name, step))]
    change = (results[0] - results[1]).abs().unflatten(0, (-1, K)).transpose(0, 1).flatten(1).amax(dim=1)
    return {int(index) for index in torch.nonzero(change > 1e-6)}


def test_local_tokens(model: SequenceModel) -> None:
    embed = trunk_of(model).embed_local
    inputs = model.inputs(random_window(model, [K, K]))
    with torch.no_grad():
        tokens = embed(inputs)
        assert tokens.shape == (2, K, TOKENS, LOCAL)
        torch.testing.assert_close(tokens[:, 1:, 0], embed.embed_action(inputs.actions[:, :-1]))
        for index in range(STATES):
            component = inputs.observations[:, :, index : index + 1]
            expected = embed.embed_component(component) + embed.components[index]
            torch.testing.assert_close(tokens[:, :, 1 + index], expected)
        torch.testing.assert_close(tokens[:, :, -1], embed.embed_return(inputs.returns_to_go).tanh())
    assert embed.embed_action.weight.shape == ((LOCAL, 2) if model.spec.head.continuous else (4, LOCAL))


@pytest.mark.parametrize("garbage", [0.0, -10.0, float("nan")])
def test_no_action_comes_before_the_first_step(model: SequenceModel, garbage: float) -> None:
    real = [K, 4, 1]
    inputs = model.inputs(pad(random_window(model, real), garbage))
    with torch.no_grad():
        previous = trunk_of(model).embed_local(inputs)[:, :, 0]
    for row, count in enumerate(real):
        assert not previous[row, K - count].any()
        assert previous[row, K - count + 1 :].any(dim=-1).all()


@pytest.mark.parametrize("layer", [0, 1])
def test_local_attention_stays_within_its_step(model: SequenceModel, layer: int) -> None:
    window = random_window(model, [K, K])
    within = trunk_of(model).blocks[layer].within
    for step in range(K):
        for name in ("observations", "returns_to_go"):
            assert moved_steps(model, within, window, name, step) == {step}
        following = {step + 1} if step + 1 < K else set()
        assert moved_steps(model, within, window, "actions", step) == following


def test_local_attention_has_no_mask(model: SequenceModel) -> None:
    block = trunk_of(model).blocks[0].within
    (local, bias), _ = calls(model, block, random_window(model, [K, 3]))
    for key in range(TOKENS):
        moved = local.clone()
        moved[:, key] = torch.randn(LOCAL, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            change = (block(moved, bias) - block(local, bias)).abs().amax(dim=(0, 2))
        assert (change > 1e-5).all(), "every token sees every other"


def test_local_tokens_go_on_without_the_steps(model: SequenceModel) -> None:
    window = random_window(model, [K, K])
    first, second = trunk_of(model).blocks
    assert torch.equal(calls(model, first.within, window)[1], calls(model, second.within, window)[0][0])


@pytest.mark.parametrize("layer", [0, 1])
def test_summaries_know_the_previous_action(model: SequenceModel, layer: int) -> None:
    window = random_window(model, [K, K])
    summarize = trunk_of(model).blocks[layer].summarize
    for step in range(K - 1):
        assert moved_steps(model, summarize, window, "actions", step) == {step + 1}


@pytest.mark.parametrize("layers", [1, 2])
def test_what_each_action_sees(make_store: MakeStore, layers: int) -> None:
    """Its own step without its action, and all of the steps before."""
    model = build(make_store(), num_layers=layers)
    window = random_window(model, [K, K])
    before = outputs(model, window)
    for name, newest in (("observations", 0), ("returns_to_go", 0), ("actions", 1)):
        for step in range(K):
            change = outputs(model, changed(model, window, name, step)) - before
            seen = change.abs().amax(dim=(0, 2)) > 1e-6
            assert seen.tolist() == [reader >= step + newest for reader in range(K)], (name, step)


@pytest.mark.parametrize("layer", [0, 1])
def test_among_the_steps_a_token_sees_itself_and_the_ones_before(model: SequenceModel, layer: int) -> None:
    block = trunk_of(model).blocks[layer].among
    (x, bias, read), _ = calls(model, block, random_window(model, [K, K]))
    assert list(range(2 * K))[read] == list(range(1, 2 * K, 2)), "global tokens follow their summaries"
    expected = torch.ones(2 * K, 2 * K).tril().bool()
    assert torch.equal(bias.isfinite()[0, 0], expected)
    assert not expected[0, -1], "the released code lets the first token see the last"
    visible = torch.zeros(2 * K, 2 * K, dtype=torch.bool)
    for key in range(2 * K):
        moved = x.clone()
        moved[:, key] = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            visible[:, key] = (block(moved, bias) - block(x, bias)).abs().amax(dim=(0, 2)) > 1e-6
    assert torch.equal(visible, expected)


def test_padding_is_masked_among_the_steps(model: SequenceModel) -> None:
    window = random_window(model, [K, 2])
    (_, bias, _), _ = calls(model, trunk_of(model).blocks[0].among, window)
    pads = 2 * (K - 2)
    assert not bias[1, 0, pads:, :pads].isfinite().any()
    assert bias[0, 0, pads:, :pads].isfinite().all()


def test_positions_are_slots_and_not_timesteps(model: SequenceModel) -> None:
    trunk = trunk_of(model)
    assert trunk.slots.shape == (K, 16)
    window = random_window(model, [K, K])
    before = outputs(model, window)
    assert torch.equal(outputs(model, replace(window, timesteps=window.timesteps + 9)), before)
    for slot in range(K):
        kept = trunk.slots.detach().clone()
        with torch.no_grad():
            trunk.slots[slot] += torch.linspace(-1, 1, 16)
        change = (outputs(model, window) - before).abs().amax(dim=(0, 2))
        assert (change > 1e-6).tolist() == [step >= slot for step in range(K)]
        with torch.no_grad():
            trunk.slots.copy_(kept)


@pytest.mark.parametrize("real", [1, 4])
def test_only_the_slots_tell_a_padded_window_from_a_prefix(model: SequenceModel, real: int) -> None:
    whole = random_window(model, [K, K])
    shifted = {}
    for name, values in whole.to_dict().items():
        ahead = torch.zeros_like(values[:, : K - real])
        shifted[name] = torch.cat([ahead, values[:, :real]], dim=1)
    prefix = Window(**shifted)

    def difference() -> float:
        return float((outputs(model, prefix)[:, -real:] - outputs(model, whole)[:, :real]).abs().max())

    assert difference() > 1e-2
    with torch.no_grad():
        trunk_of(model).slots.zero_()
    assert difference() <= 1e-5


def reference_block(block: Block, x: Tensor, visible: Tensor) -> Tensor:
    """A pre-norm transformer block in plain words; `visible` is `(T, T)` bool."""
    heads, width = block.attention.heads, x.shape[-1]
    q, k, v = block.attention.qkv(block.norm_attention(x)).chunk(3, dim=-1)
    attended = []
    for part in torch.arange(width).split(width // heads):
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / len(part) ** 0.5
        attended.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v[..., part])
    x = x + block.attention.out(torch.cat(attended, dim=-1))
    return x + block.mlp.contract(functional.gelu(block.mlp.expand(block.norm_mlp(x))))


def test_the_trunk_is_what_its_authors_describe(model: SequenceModel) -> None:
    """Against a plain version of it, which computes every token of every layer."""
    trunk = trunk_of(model)
    inputs = model.inputs(random_window(model, [K, K]))
    with torch.no_grad():
        local = trunk.embed_local(inputs)
        states = trunk.embed_observation(inputs.observations) + trunk.slots
        for block in trunk.blocks:
            local = reference_block(block.within, local, torch.ones(TOKENS, TOKENS, dtype=torch.bool))
            summaries = block.norm_summary(block.summarize(block.norm_local(local).reshape(2, K, -1)))
            x = torch.zeros(2, 2 * K, 16)
            x[:, 0::2], x[:, 1::2] = summaries + trunk.slots, states
            states = reference_block(block.among, x, torch.ones(2 * K, 2 * K).tril().bool())[:, 1::2]
        torch.testing.assert_close(trunk(inputs), trunk.final_norm(states), rtol=1e-4, atol=1e-5)


def test_local_sizes_are_chosen_apart(make_store: MakeStore) -> None:
    model = build(make_store(), local_dim=12, local_heads=3, embed_dim=32, num_heads=2)
    for block in trunk_of(model).blocks:
        assert (block.within.attention.heads, block.among.attention.heads) == (3, 2)
        assert block.within.mlp.expand.weight.shape == (48, 12)
        assert block.among.mlp.expand.weight.shape == (128, 32)
        assert block.summarize.weight.shape == (32, 12 * TOKENS)
    assert trunk_of(model).embed_local.components.shape == (STATES, 12)
    defaults = trunk_of(build(make_store())).blocks[0].within
    assert (defaults.attention.heads, defaults.norm_attention.normalized_shape) == (4, (16,))


def test_initialization_follows_the_authors(make_store: MakeStore) -> None:
    spec = build(make_store(observation_dim=40, actions=50), embed_dim=64).spec
    torch.manual_seed(0)
    model = SequenceModel(spec)
    trunk = trunk_of(model)
    weights = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            weights.append(layer.weight)
            assert not getattr(layer, "bias", torch.zeros(1)).any()
        elif isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
    assert len(weights) == 4 + 2 * 9 + 1, "embeddings, blocks and head"
    for weight in weights:
        # The two embeddings of single numbers have only 16 weights.
        assert weight.detach().std().item() == pytest.approx(0.02, rel=0.1 if weight.numel() > 16 else 0.6)
    assert not trunk.slots.any() and not trunk.embed_local.components.any()


def test_every_parameter_is_trained(model: SequenceModel) -> None:
    window = random_window(model, [K, 4])
    loss = losses.masked_mse if model.spec.head.continuous else losses.cross_entropy
    loss(model(window), model.to_model_actions(window.actions), window.mask).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert (trunk_of(model).slots.grad.abs().amax(dim=-1) > 0).all()
    assert (trunk_of(model).embed_local.components.grad.abs().amax(dim=-1) > 0).all()


def test_dropout_is_ours_and_in_every_place(make_store: MakeStore) -> None:
    model = build(make_store(), dropout=0.5).train()
    window = random_window(model, [K, K])
    places = {name: layer for name, layer in model.named_modules() if isinstance(layer, Dropout)}
    blocks = [f"trunk.blocks.{layer}.{part}" for layer in (0, 1) for part in ("within", "among")]
    of_block = ("attention.weight_dropout", "dropout", "mlp.dropout")
    assert set(places) == {
        "trunk.local_dropout",
        "trunk.global_dropout",
        *(f"{block}.{name}" for block in blocks for name in of_block),
    }
    assert not any(isinstance(layer, nn.Dropout) for layer in model.modules())
    reached: set[str] = set()
    for name, layer in places.items():
        layer.register_forward_hook(
            lambda _, args, output, name=name: reached.add(name) if (output != args[0]).any() else None
        )
    model.reseed(1)
    first = outputs(model, window)
    assert reached == set(places)
    model.reseed(2)
    assert (outputs(model, window) - first).abs().max() > 1e-3
    model.reseed(1)
    assert torch.equal(outputs(model, window), first)
