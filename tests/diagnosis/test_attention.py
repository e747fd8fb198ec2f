"""Attention that can be worked out by hand, on models whose weights are set by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_model, pad, random_window
from torch import Tensor, nn

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.diagnosis.attention import AttentionSummary, read_layers, summarize
from rayrl_dt.errors import UserError
from rayrl_dt.models.blocks import CausalSelfAttention
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
K, WIDTH = 6, 16
CHANCE = sum(n / (3 * n - 1) for n in range(1, K + 1)) / K
"""Even share of the returns among returns, states and actions, over the queries of a full window."""


@pytest.fixture(params=["continuous", "discrete"])
def store(request: pytest.FixtureRequest, make_store: MakeStore) -> TrajectoryStore:
    return make_store(actions=4 if request.param == "discrete" else None)


@pytest.fixture
def one(make_store: MakeStore) -> TrajectoryStore:
    return make_store()


def zero(*modules: nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.zero_()


def blank(model: SequenceModel) -> SequenceModel:
    """Sets every weight to zero, and norms to plain ones."""
    zero(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) and module.weight is not None:
                module.weight.fill_(1.0)
    return model


def look_evenly(model: SequenceModel) -> SequenceModel:
    """Sets queries and keys to zero: every visible token gets the same."""
    for block in model.trunk.blocks:
        with torch.no_grad():
            block.attention.qkv.weight[: 2 * WIDTH].zero_()
            if block.attention.qkv.bias is not None:
                block.attention.qkv.bias[: 2 * WIDTH].zero_()
        if getattr(block, "aligner", None) is not None:
            zero(block.aligner.attention.query, block.aligner.attention.key)
    return model


def hooks(model: SequenceModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


EVEN = {
    # Two steps: s_1 sees R_1 s_1 (a half each), s_2 sees R_1 s_1 a_1 R_2 s_2 (a fifth each).
    "dt": {"return": 0.45, "state": 0.45, "action": 0.1},
    # s_1 sees itself, s_2 sees s_1 a_1 s_2.
    "no-return": {"state": 5 / 6, "action": 1 / 6},
    "radt": {"state": 5 / 6, "action": 1 / 6},
}


@pytest.mark.parametrize("backbone", list(EVEN))
@pytest.mark.parametrize("heads", [1, 4])
def test_without_queries_and_keys_all_that_is_visible_gets_the_same(
    store: TrajectoryStore, backbone: str, heads: int
) -> None:
    model = look_evenly(build_model(store, backbone=backbone, num_heads=heads, num_layers=3))
    found = summarize(model, [random_window(model, [2, 2])])
    assert found.queries == 4 and len(found.layers) == 3 and found.backbone == backbone
    for layer in found.layers:
        assert layer.shares == pytest.approx(EVEN[backbone], abs=1e-6)
    assert found.uniform_shares == pytest.approx(EVEN[backbone], abs=1e-6)


def test_ages_of_an_even_spread(one: TrajectoryStore) -> None:
    dt = summarize(look_evenly(build_model(one)), [random_window(build_model(one), [2])])
    # s_1 gives R_1 a half; s_2 gives R_2 and R_1 a fifth each.
    for ages in (dt.uniform_ages, *(layer.ages for layer in dt.layers)):
        assert ages == pytest.approx((0.35, 0.1, 0, 0, 0, 0), abs=1e-6)
    assert dt.return_share == pytest.approx(1.0, abs=1e-5)
    radt_model = look_evenly(build_model(one, backbone="radt"))
    radt = summarize(radt_model, [random_window(radt_model, [2])])
    for ages in (radt.uniform_ages, *(layer.ages for layer in radt.layers)):
        assert ages == pytest.approx((0.75, 0.25, 0, 0, 0, 0), abs=1e-6)
    assert radt.layers[0].mean_age == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("backbone", list(EVEN))
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_rows_sum_to_one_and_neither_padding_nor_future_gets_mass(
    store: TrajectoryStore, backbone: str, heads: int
) -> None:
    model = build_model(store, backbone=backbone, num_heads=heads)
    real = [1, 3, K]
    readings = read_layers(model, random_window(model, real))
    per_step = 3 if backbone == "dt" else 2
    assert [reading.weights.shape[2] for reading in readings] == [K * per_step, K], "the last reads states"
    for reading in readings:
        assert reading.weights.shape[:2] == (3, heads)
        step_of_row = torch.arange(reading.weights.shape[2]) * K // reading.weights.shape[2]
        for weights, tokens in ((reading.weights, per_step), (reading.cross, 1)):
            if weights is None:
                continue
            step_of_column = torch.arange(weights.shape[3]) // tokens
            for window, count in enumerate(real):
                rows = weights[window][:, step_of_row >= K - count]
                torch.testing.assert_close(rows.sum(dim=-1), torch.ones(rows.shape[:2]))
                assert (rows[:, :, step_of_column < K - count] == 0).all(), "padding"
                later = step_of_column > step_of_row[step_of_row >= K - count][:, None]
                assert (rows[:, later] == 0).all(), "the future"


def test_the_first_state_and_action_of_radt_attend_to_the_first_return_alone(store: TrajectoryStore) -> None:
    model = build_model(store, backbone="radt")
    real = [1, 4, K]
    inner, last = read_layers(model, random_window(model, real))
    assert inner.cross is not None and last.cross is not None
    for window, count in enumerate(real):
        first = K - count
        torch.testing.assert_close(inner.cross[window, :, 2 * first : 2 * first + 2, first], torch.ones(2, 2))
        torch.testing.assert_close(last.cross[window, :, first, first], torch.ones(2))


@pytest.mark.parametrize("backbone", list(EVEN))
def test_both_ways_to_compute_the_last_layer_read_the_same(
    one: TrajectoryStore, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(one, backbone=backbone, num_heads=4)
    window = random_window(model, [2, 5, K])
    found = []
    for few in (True, False):
        monkeypatch.setattr(CausalSelfAttention, "_few", lambda *_, few=few: few)
        found.append(read_layers(model, window)[-1].weights)
    assert found[0].shape == (3, 4, K, K * (3 if backbone == "dt" else 2))
    real = window.mask[:, None, :, None].expand_as(found[0])
    torch.testing.assert_close(found[0][real], found[1][real])
    assert not torch.allclose(found[0][:, 0], found[0][:, 1]), "the heads differ, so their order counts"


def test_the_weights_are_those_of_the_formula(one: TrajectoryStore) -> None:
    model = build_model(one, num_layers=1, num_heads=1)
    window = random_window(model, [K])
    attention = model.trunk.blocks[0].attention
    tokens: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    (reading,) = read_layers(model, window)
    handle.remove()
    q, k, _ = attention.qkv(tokens[0]).split(WIDTH, dim=-1)
    scores = (q @ k.transpose(1, 2) / WIDTH**0.5).masked_fill(torch.ones(18, 18).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(reading.weights[:, 0], scores.softmax(dim=-1)[:, 1::3])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("axis", "kind"), [(0, "return"), (1, "state")])
def test_a_model_that_looks_at_one_kind_of_token_is_seen_to(
    one: TrajectoryStore, layers: int, axis: int, kind: str
) -> None:
    model = blank(build_model(one, num_layers=layers, num_heads=1))
    trunk = model.trunk
    encoders = (trunk.embed_return, trunk.embed_observation, trunk.embed_action)
    with torch.no_grad():
        for place, encoder in enumerate(encoders):  # each kind of token is a direction of its own
            encoder.bias[place] = 100.0
        for block in trunk.blocks:
            block.attention.qkv.weight[WIDTH : 2 * WIDTH] = torch.eye(WIDTH)
            block.attention.qkv.bias[axis] = 100.0
    found = summarize(model, [random_window(model, [K])])
    for layer in found.layers:
        assert layer.shares[kind] == pytest.approx(1.0, abs=1e-5)
        assert sum(layer.shares.values()) == pytest.approx(1.0, abs=1e-5)
    expected = 1 / CHANCE if kind == "return" else 0.0
    assert found.return_share == pytest.approx(expected, abs=1e-4)


def aligned(store: TrajectoryStore, **options: Any) -> SequenceModel:
    """RADT with one layer, whose every token is one vector, and whose attentions add nothing."""
    model = blank(build_model(store, backbone="radt", num_layers=1, num_heads=1, **options))
    direction = torch.linspace(-1, 1, WIDTH)
    with torch.no_grad():
        for encoder in (model.trunk.embed_observation, model.trunk.embed_action):
            encoder.bias.copy_(direction)
    return model


def test_ages_count_back_from_the_query(one: TrajectoryStore) -> None:
    model = aligned(one)
    aligner = model.trunk.blocks[0].aligner
    with torch.no_grad():  # a return of 1 is looked at, one of -1 is not
        model.trunk.embed_return.weight[:, 0] = torch.linspace(-1, 1, WIDTH)
        aligner.attention.query.weight.copy_(torch.eye(WIDTH))
        aligner.attention.key.weight.copy_(50 * torch.eye(WIDTH))
    window = random_window(model, [K])
    returns = torch.full((1, K, 1), -1.0)
    returns[0, 2] = 1.0
    (layer,) = summarize(model, [replace(window, returns_to_go=returns)]).layers
    # s_1 sees R_1 alone, s_2 two of one kind; s_3 to s_6 look at R_3: 0, 1, 2 and 3 steps back.
    expected = torch.tensor([1 + 0.5 + 1, 0.5 + 1, 1, 1, 0, 0]) / K
    assert layer.ages == pytest.approx(expected.tolist(), abs=1e-5)
    assert layer.mean_age == pytest.approx((0.5 + 0 + 1 + 2 + 3) / K, abs=1e-5)


@pytest.mark.parametrize(
    ("bias", "gate", "size"),
    [([-1.0] * WIDTH, 0.0, 1.0), ([0.5] * WIDTH, 1.5, 0.5), ([1.0, -1.0] * (WIDTH // 2), 1.0, 1.0)],
)
def test_lambda_set_by_hand(one: TrajectoryStore, bias: list[float], gate: float, size: float) -> None:
    model = build_model(one, backbone="radt")
    for block in model.trunk.blocks:
        zero(block.aligner.scaling)
        with torch.no_grad():
            block.aligner.scaling.bias.copy_(torch.tensor(bias))
    found = summarize(model, [random_window(model, [1, 4])])
    for layer in found.layers:
        assert layer.seqra is not None
        assert (layer.seqra.gate, layer.seqra.lambda_size) == pytest.approx((gate, size))
        assert (layer.seqra.relative_size == 0) == (gate == 0), "a closed gate lets nothing through"
        assert (layer.on_returns == 0) == (gate == 0)
    assert (found.return_share == 0) == (gate == 0)


def test_what_seqra_adds_is_told_relative_to_the_query_and_to_self_attention(one: TrajectoryStore) -> None:
    model = aligned(one)
    block = model.trunk.blocks[0]
    with torch.no_grad():
        block.attention.out.bias[0] = 1.0  # self-attention adds a vector of length 1
        block.aligner.attention.out.bias[0] = 2.0
        block.aligner.scaling.bias.fill_(0.5)  # SeqRA one of length 2 times 1.5
    found = summarize(model, [random_window(model, [K])])
    (layer,) = found.layers
    assert layer.seqra is not None
    assert layer.seqra.relative_size == pytest.approx(3 / 4, rel=1e-4), "a normed query has length sqrt(16)"
    assert layer.on_returns == pytest.approx(3 / (3 + 1), rel=1e-5)
    assert found.return_share == pytest.approx(0.75 / CHANCE, rel=1e-5)


def test_variants_of_radt(one: TrajectoryStore) -> None:
    plain = build_model(one, backbone="radt", adaptive_scaling=False)
    layer = summarize(plain, [random_window(plain, [K])]).layers[0]
    assert layer.seqra is not None and (layer.seqra.gate, layer.seqra.lambda_size) == (1.0, 0.0)
    assert layer.seqra.relative_size > 0
    without = build_model(one, backbone="radt", use_seqra=False)
    found = summarize(without, [random_window(without, [K])])
    assert found.return_share is None and found.uniform_ages == ()
    assert all(layer.seqra is None and layer.ages == () for layer in found.layers)
    assert found.layers[0].mean_age is None


def test_batches_count_by_their_queries(one: TrajectoryStore) -> None:
    for backbone in EVEN:
        model = build_model(one, backbone=backbone)
        window = random_window(model, [1, 5, 2])
        parts = [
            Window(
                **{
                    name: getattr(window, name)[rows]
                    for name in ("returns_to_go", "observations", "actions", "timesteps", "mask")
                }
            )
            for rows in (slice(0, 2), slice(2, 3))
        ]
        whole, split = summarize(model, [window]), summarize(model, parts)
        assert whole.queries == split.queries == 8
        for left, right in zip(whole.layers, split.layers, strict=True):
            assert left.shares == pytest.approx(right.shares, abs=1e-6)
            assert left.ages == pytest.approx(right.ages, abs=1e-6)
        assert whole.uniform_shares == pytest.approx(split.uniform_shares)
        if backbone == "no-return":
            assert whole.return_share is split.return_share is None
        else:
            assert whole.return_share == pytest.approx(split.return_share, rel=1e-5)


def test_ages_sum_to_the_mass_on_returns(one: TrajectoryStore) -> None:
    for backbone in ("dt", "radt"):
        model = build_model(one, backbone=backbone)
        for layer in summarize(model, [random_window(model, [1, 3, K])]).layers:
            assert sum(layer.ages) == pytest.approx(layer.shares.get("return", 1.0), abs=1e-6)
            assert 0 < layer.shares["action"] < 1


def test_what_padding_holds_changes_nothing(one: TrajectoryStore) -> None:
    for backbone in EVEN:
        model = build_model(one, backbone=backbone)
        window = random_window(model, [2, 4])
        assert summarize(model, [window]) == summarize(model, [pad(window, 7)])


@pytest.mark.parametrize("backbone", list(EVEN))
def test_reading_leaves_no_trace(one: TrajectoryStore, backbone: str) -> None:
    model = build_model(one, backbone=backbone, dropout=0.5)
    window = random_window(model, [2, K])
    evaluated = summarize(model, [window])
    assert not model.training and hooks(model) == 0
    model.train()
    assert summarize(model, [window]) == evaluated, "read without dropout"
    assert model.training and model.trunk.blocks[0].attention.weight_dropout.training and hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    model.head = nn.Linear(WIDTH + 1, 1)
    with pytest.raises(RuntimeError):
        read_layers(model, window)
    assert model.training and hooks(model) == 0, "also after a failure"


@pytest.mark.parametrize("backbone", ["mlp", "convformer", "starformer"])
def test_other_backbones_are_refused(one: TrajectoryStore, backbone: str) -> None:
    model = build_model(one, backbone="mlp")
    window = random_window(model, [K])
    model.spec = replace(model.spec, model=replace(model.spec.model, backbone=backbone))
    for call in (lambda: read_layers(model, window), lambda: summarize(model, [window])):
        with pytest.raises(UserError, match=f"'{backbone}' has no attention .* dt, radt, no-return"):
            call()


def test_a_model_elsewhere_is_refused(one: TrajectoryStore) -> None:
    model = build_model(one).to("meta")
    with pytest.raises(UserError, match="load the policy on the CPU"):
        read_layers(model, random_window(build_model(one), [K]))


def test_json_holds_everything(one: TrajectoryStore) -> None:
    model = build_model(one, backbone="radt")
    found: AttentionSummary = summarize(model, [random_window(model, [K])])
    values = json.loads(json.dumps(found.to_json()))
    assert values["return_share"] == found.return_share
    assert values["layers"][1]["seqra"]["gate"] == found.layers[1].seqra.gate  # type: ignore[union-attr]
    assert values["layers"][0]["shares"] == found.layers[0].shares
