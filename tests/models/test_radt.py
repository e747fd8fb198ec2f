"""RADT's own invariants (methods: DT and RADT, section 7, numbers 19 to 25)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_model, pad, random_window
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.radt import RADTTrunk, sinusoids
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

K, WIDTH = 6, 16
MakeStore = Callable[..., TrajectoryStore]

VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without SeqRA": {"use_seqra": False},
    "without StepRA": {"use_stepra": False},
    "without StepRA, post-norm": {"use_stepra": False, "norm": "post"},
    "without adaptive scaling": {"adaptive_scaling": False},
    "pre-norm": {"norm": "pre"},
}


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest, make_store: MakeStore) -> SequenceModel:
    return build_model(make_store(), backbone="radt", **VARIANTS[request.param])


@pytest.fixture
def whole(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store(), backbone="radt")


def fresh(store: TrajectoryStore, **options: Any) -> SequenceModel:
    """A model as it is initialized."""
    torch.manual_seed(0)
    return SequenceModel(build_model(store, backbone="radt", **options).spec).eval()


def trunk_of(model: SequenceModel) -> RADTTrunk:
    assert isinstance(model.trunk, RADTTrunk)
    return model.trunk


def outputs(model: SequenceModel, window: Window[Tensor]) -> Tensor:
    with torch.no_grad():
        return model(window)


@contextmanager
def attention_weights(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects `(B * H, queries, keys)` weights of an attention in each forward pass."""
    seen: list[Tensor] = []
    handle = module.weight_dropout.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def block_outputs(model: SequenceModel, window: Window[Tensor]) -> tuple[Tensor, Tensor]:
    """Input and output `(B, 2K, d)` of the first block, whose tokens are all computed."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = (
        trunk_of(model)
        .blocks[0]
        .register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    )
    outputs(model, window)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("step", range(K))
def test_no_stream_sees_later_returns(variant: SequenceModel, step: int) -> None:
    window = random_window(variant, [K, K])
    later = window.returns_to_go.clone()
    later[:, step] += 3
    _, before = block_outputs(variant, window)
    _, after = block_outputs(variant, replace(window, returns_to_go=later))
    moved = (before - after).abs().amax(dim=(0, 2)).unflatten(0, (K, 2))
    assert moved[:step].max() == 0 if step else True
    # Both the state and the action of the step see its return.
    assert (moved[step] > 1e-4).all()


def test_initialization_follows_the_authors(make_store: MakeStore) -> None:
    store = make_store()
    model = fresh(store, embed_dim=64)
    for block in trunk_of(model).blocks:
        assert not block.modulation.project.weight.any() and not block.modulation.project.bias.any()
        assert not block.aligner.scaling.weight.any() and not block.aligner.scaling.bias.any()
        assert block.attention.qkv.bias is None and block.aligner.attention.query.bias is None
        for layer in (block.attention.qkv, block.mlp.expand, block.aligner.attention.key):
            assert layer.weight.detach().std().item() == pytest.approx(0.02, rel=0.1)
    assert model.head.weight.detach().std().item() == pytest.approx(0.02, rel=0.3)
    assert not model.head.bias.any()
    assert not hasattr(trunk_of(model), "embed_norm"), "the stream has no norm before the blocks"


def test_a_fresh_block_is_plain_post_norm_with_seqra_fully_on(make_store: MakeStore) -> None:
    model = fresh(make_store(), num_heads=1)
    window = random_window(model, [K])
    entered, left = block_outputs(model, window)
    block = trunk_of(model).blocks[0]
    inputs = model.inputs(window)
    with torch.no_grad():
        rows = torch.arange(2 * K)

        def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
            scores = (query @ key.transpose(1, 2) / WIDTH**0.5).masked_fill(~visible, -1e9)
            return scores.softmax(-1) @ value

        q, k, v = block.attention.qkv(entered).chunk(3, -1)
        h = entered + block.attention.out(attend(q, k, v, rows[None, :] <= rows[:, None]))
        u = functional.layer_norm(h, (WIDTH,), eps=1e-6)
        trunk = trunk_of(model)
        returns = trunk.embed_return(inputs.returns_to_go)
        placed = returns + trunk.embed_position(trunk.positions[inputs.timesteps])
        cross = block.aligner.attention
        key, value = cross.key(cross.norm_key(placed)), cross.value(cross.norm_value(returns))
        visible = torch.arange(K)[None, :] <= (rows // 2)[:, None]
        z = cross.out(attend(cross.query(u), key, value, visible))
        w = functional.layer_norm(u + z, (WIDTH,), eps=1e-6)
        y = functional.layer_norm(w + block.mlp(w), (WIDTH,), eps=1e-6)
    torch.testing.assert_close(left, y, rtol=1e-5, atol=1e-5)
    assert (z.abs().mean() > 1e-4).item(), "lambda = 0 leaves the cross-attention on"


def test_lambda_of_minus_one_is_the_block_without_seqra(make_store: MakeStore) -> None:
    store = make_store()
    with_seqra = build_model(store, backbone="radt")
    without = build_model(store, backbone="radt", use_seqra=False)
    for model in (with_seqra, without):
        for block in trunk_of(model).blocks:
            nn.init.zeros_(block.modulation.project.weight)
            nn.init.zeros_(block.modulation.project.bias)
    for block in trunk_of(with_seqra).blocks:
        nn.init.zeros_(block.aligner.scaling.weight)
        nn.init.constant_(block.aligner.scaling.bias, -1.0)
    shared = {
        name: value
        for name, value in with_seqra.state_dict().items()
        if "aligner" not in name and "modulation" not in name
    }
    without.load_state_dict(shared, strict=False)
    window = random_window(with_seqra, [K, 3])
    real = window.mask
    torch.testing.assert_close(
        outputs(with_seqra, window)[real], outputs(without, window)[real], rtol=0, atol=1e-5
    )
    other = replace(window, returns_to_go=window.returns_to_go + 5)
    assert torch.equal(outputs(with_seqra, window), outputs(with_seqra, other))


def test_without_seqra_a_fresh_model_learns_to_read_returns(make_store: MakeStore) -> None:
    model = fresh(make_store(), use_seqra=False)
    window = random_window(model, [K, K])
    other = replace(window, returns_to_go=window.returns_to_go + 5)
    assert torch.equal(outputs(model, window), outputs(model, other))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses.masked_mse(model(window), model.to_model_actions(window.actions), window.mask).backward()
    optimizer.step()
    assert (outputs(model, window) - outputs(model, other)).abs().max() > 1e-7


def test_the_first_gradient_reaches_lambda_and_the_modulation(make_store: MakeStore) -> None:
    model = fresh(make_store())
    window = random_window(model, [K, 4])
    losses.masked_mse(model(window), model.to_model_actions(window.actions), window.mask).backward()
    for block in trunk_of(model).blocks:
        assert block.aligner.scaling.weight.grad.abs().max() > 0
        # A return of exactly zero has gates of zero at initialization; those of the window are not zero.
        assert block.modulation.project.weight.grad.abs().max() > 0


def test_every_parameter_is_trained(variant: SequenceModel) -> None:
    window = random_window(variant, [K, 4])
    losses.masked_mse(variant(window), variant.to_model_actions(window.actions), window.mask).backward()
    idle = {name for name, p in variant.named_parameters() if p.grad is None or not p.grad.any()}
    # The bias of a key's norm adds the same to all scores of a query, which the softmax ignores.
    assert {name for name in idle if "norm_key.bias" not in name} == set()


@pytest.mark.parametrize("heads", [1, 2])
def test_cross_attention_sees_the_returns_up_to_its_step(make_store: MakeStore, heads: int) -> None:
    model = build_model(make_store(), backbone="radt", num_heads=heads)
    window = random_window(model, [K, K])
    with attention_weights(trunk_of(model).blocks[0].aligner.attention) as seen:
        outputs(model, window)
    weights = seen[0].unflatten(0, (2, heads)).unflatten(2, (K, 2))  # (B, H, K, 2, K)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, K, 2))
    assert (weights[:, :, 0, :, 0] == 1).all(), "s_1 and a_1 see nothing but the first return"
    expected = torch.ones(K, K, dtype=torch.bool).tril()
    for token in range(2):
        assert torch.equal(weights[0, 0, :, token] > 0, expected)


def test_padding_gets_no_attention_and_makes_no_nan(variant: SequenceModel) -> None:
    window = random_window(variant, [2, K, 1])
    keys = window.mask
    for block in trunk_of(variant).blocks[:1]:
        modules = [block.attention] + ([block.aligner.attention] if block.aligner is not None else [])
        for module in modules:
            with attention_weights(module) as seen:
                assert outputs(variant, window).isfinite().all()
            weights = seen[0].unflatten(0, (3, -1))  # (B, H, queries, keys)
            real_keys = keys.repeat_interleave(weights.shape[-1] // K, 1)
            real_queries = keys.repeat_interleave(weights.shape[-2] // K, 1)
            mass = (weights * ~real_keys[:, None, None, :]).sum(-1)
            assert mass[real_queries[:, None].expand_as(mass)].max() < 1e-6
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(mass))


def test_the_inverted_mask_is_the_authors_fault_and_only_in_training(make_store: MakeStore) -> None:
    store = make_store()
    ours = build_model(store, backbone="radt")
    theirs = build_model(store, backbone="radt", padding_mask="inverted")
    theirs.load_state_dict(ours.state_dict())
    padded, full = random_window(ours, [2, 2]), random_window(ours, [K, K])
    for model in (ours, theirs):
        model.train()
    with attention_weights(trunk_of(theirs).blocks[0].aligner.attention) as seen:
        broken = outputs(theirs, padded)
    on_padding = seen[0].unflatten(0, (2, -1))[..., : K - 2].sum(-1)
    assert on_padding.min() > 1 - 1e-6, "everything looks at padding only"
    assert (broken - outputs(ours, padded))[padded.mask].abs().max() > 1e-3
    # A window without padding is shifted as a whole, which costs some digits of the scores and no more.
    torch.testing.assert_close(outputs(theirs, full), outputs(ours, full), rtol=0, atol=2e-2)
    for model in (ours, theirs):
        model.eval()
    assert torch.equal(outputs(theirs, padded), outputs(ours, padded))


def test_parameters_are_as_many_as_in_the_authors_model(make_store: MakeStore) -> None:
    store = make_store(observation_dim=11, action_dim=3)
    spec = build_model(
        store, backbone="radt", embed_dim=128, num_layers=3, num_heads=1, max_episode_steps=1000
    ).spec
    model = SequenceModel(spec)
    assert sum(p.numel() for p in trunk_of(model).blocks[0].parameters()) == 395_520
    assert sum(p.numel() for p in model.parameters()) == 1_205_763


def test_sinusoids() -> None:
    table = sinusoids(50, 8)
    assert table.shape == (50, 8)
    assert table[0].tolist() == [0, 1] * 4
    step, pair = 7, 2
    angle = torch.tensor(step / 10_000 ** (2 * pair / 8))
    torch.testing.assert_close(table[step, 2 * pair : 2 * pair + 2], torch.stack([angle.sin(), angle.cos()]))
    assert sinusoids(3, 5).shape == (3, 5)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_variants_work_with_discrete_actions_and_padding(
    make_store: MakeStore, options: dict[str, Any]
) -> None:
    model = build_model(make_store(actions=4, first_action=3), backbone="radt", **options)
    clean = random_window(model, [1, K])
    with torch.no_grad():
        logits = model(clean)
        assert torch.equal(logits[clean.mask], model(pad(clean, float("nan")))[clean.mask])
        torch.testing.assert_close(model(clean, last_only=True), logits[:, -1:], rtol=1e-5, atol=1e-5)
    assert logits.shape == (2, K, 4)


@pytest.mark.parametrize(
    ("options", "norm"),
    [
        ({}, "post"),
        ({"use_stepra": False}, "pre"),
        ({"use_seqra": False}, "post"),
        ({"use_stepra": False, "norm": "post"}, "post"),
    ],
)
def test_auto_norm_is_the_authors_choice(options: dict[str, Any], norm: str) -> None:
    resolved = ModelConfig(backbone="radt", **options).resolved()
    assert (resolved.norm, resolved.activation) == (norm, "gelu")
    assert ModelConfig(backbone="dt").resolved().activation == "relu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_seqra": False, "use_stepra": False}, "nothing reads the returns.*no-return"),
        ({"use_seqra": False, "adaptive_scaling": False}, "adaptive_scaling"),
        ({"use_seqra": "yes"}, "use_seqra is 'yes'.*true or false"),
        ({"norm": "mid"}, "norm is 'mid'"),
        ({"padding_mask": "invert"}, "padding_mask is 'invert'.*Did you mean 'inverted'"),
        ({"backbone": "dt", "use_seqra": False}, "use_seqra.*'radt'"),
        ({"backbone": "mlp", "padding_mask": "inverted"}, "padding_mask.*'radt'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**{"backbone": "radt", **options})
