"""What the heads may see, what the loss counts, and that training is a function of its seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import scramble
from torch import Tensor
from torch.nn import functional

from rayrl_dt import precision
from rayrl_dt.errors import TrainingDiverged
from rayrl_dt.experiments.return_model import (
    CRITIC_ORDER,
    GRAPH_ORDER,
    ReturnModel,
    Sequences,
    fit,
)
from rayrl_dt.models.blocks import attention_bias

K, CLASSES, STATES, ACTIONS = 5, 3, 7, 4
FIELDS = ("returns", "states", "actions")
Inputs = dict[str, Tensor]


def build(order: tuple[str, ...] = CRITIC_ORDER, *, seed: int = 0) -> ReturnModel:
    sizes = {"return_classes": CLASSES, "states": STATES, "actions": ACTIONS, "steps": K}
    return ReturnModel(**sizes, order=order, width=16, layers=2, heads=2, seed=seed)


@pytest.fixture(params=[CRITIC_ORDER, GRAPH_ORDER], ids=["critic", "graph"])
def model(request: pytest.FixtureRequest) -> ReturnModel:
    built = build(request.param)
    scramble(built)
    return built


def random_inputs(batch: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    sizes = (CLASSES, STATES, ACTIONS)
    return {
        name: torch.randint(size, (batch, K), generator=generator)
        for name, size in zip(FIELDS, sizes, strict=True)
    }


def moved(model: ReturnModel, name: str, steps: slice) -> tuple[Tensor, Tensor]:
    """How much each predicted return and action changes with one field at some steps."""
    inputs = random_inputs()
    changed = inputs[name].clone()
    changed[:, steps] = (changed[:, steps] + 1) % {"returns": CLASSES, "states": STATES, "actions": ACTIONS}[
        name
    ]
    with torch.no_grad():
        before, after = model(**inputs), model(**(inputs | {name: changed}))
    returns, actions = ((a - b).abs().amax(dim=(0, 2)) for a, b in zip(before, after, strict=True))
    return returns, actions


@pytest.mark.parametrize("step", range(K))
def test_a_return_is_not_copied_from_the_input(model: ReturnModel, step: int) -> None:
    returns, _ = moved(model, "returns", slice(step, None))
    assert returns[: step + 1].max() <= 1e-6
    returns, _ = moved(model, "returns", slice(step, step + 1))
    assert (returns[step + 1 :] > 1e-3).all()


@pytest.mark.parametrize("step", range(K))
def test_no_prediction_sees_the_future(model: ReturnModel, step: int) -> None:
    returns, actions = moved(model, "actions", slice(step, None))
    assert actions[: step + 1].max() <= 1e-6 and returns[: step + 1].max() <= 1e-6
    for name in ("returns", "states"):
        returns, actions = moved(model, name, slice(step + 1, None))
        assert actions[: step + 1].max() <= 1e-6
        own_state_counts = name == "states" and model.order == GRAPH_ORDER
        assert returns[: step + (1 if own_state_counts else 2)].max() <= 1e-6


@pytest.mark.parametrize("step", range(K))
def test_an_action_follows_from_its_own_return_and_state(model: ReturnModel, step: int) -> None:
    for name in ("returns", "states"):
        assert moved(model, name, slice(step, step + 1))[1][step] > 1e-3


def test_only_in_the_graphs_order_does_a_return_see_its_state() -> None:
    for order, sees in ((CRITIC_ORDER, False), (GRAPH_ORDER, True)):
        model = build(order)
        scramble(model)
        assert bool(moved(model, "states", slice(0, 1))[0][0] > 1e-3) == sees


def test_a_return_first_order_predicts_once_more_after_the_last_action() -> None:
    inputs = random_inputs()
    for order, predicted in ((CRITIC_ORDER, K + 1), (GRAPH_ORDER, K)):
        model = build(order)
        scramble(model)
        returns, actions = model(**inputs)
        assert returns.shape == (3, predicted, CLASSES) and actions.shape == (3, K, ACTIONS)
        last = moved(model, "actions", slice(K - 1, K))[0]
        assert bool(last[-1] > 1e-3) == (order == CRITIC_ORDER)


def test_the_first_prediction_is_of_nothing_but_the_start() -> None:
    model = build()
    scramble(model)
    with torch.no_grad():
        first = model(**random_inputs())[0][:, 0]
    assert torch.equal(first, first[:1].expand_as(first))


def test_attention_is_what_the_blocks_use(model: ReturnModel) -> None:
    inputs = random_inputs()
    with torch.no_grad():
        weights = model.attention(**inputs)
        tokens = 1 + 3 * K
        assert weights.shape == (3, 2, 2, tokens, tokens)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        assert (weights.triu(1) == 0).all()
        x = model._tokens(**inputs)
        for layer, block in enumerate(model.blocks):
            normed = block.norm_attention(x)
            values = block.attention.qkv(normed)[..., 2 * 16 :].unflatten(-1, (2, -1)).transpose(1, 2)
            mixed = (weights[:, layer] @ values).transpose(1, 2).flatten(-2)
            bias = attention_bias(None, tokens, 3, x)
            torch.testing.assert_close(block.attention.out(mixed), block.attention(normed, bias))
            x = block(x, bias)


def episodes(count: int = 40) -> Sequences:
    """Episodes whose outcome, 0 or 1, is the parity of their first state; the action repeats the state."""
    states = torch.randint(ACTIONS, (count, K), generator=torch.Generator().manual_seed(1))
    outcome = (states[:, :1] % 2).expand(-1, K + 1).clone()
    lengths = torch.arange(count) % K + 1
    return Sequences(outcome, states, states.clone(), lengths)


def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "resolve", lambda *_: "fp32")


@pytest.mark.parametrize("order", [CRITIC_ORDER, GRAPH_ORDER])
def test_the_loss_is_the_mean_over_real_steps(
    monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    fp32(monkeypatch)
    data = episodes(1)
    data = replace(data, lengths=torch.tensor([3]))
    model = build(order)
    with torch.no_grad():
        returns, actions = model(data.returns[:, :-1], data.states, data.actions)
    asked = 4 if order == CRITIC_ORDER else 3
    expected = functional.cross_entropy(returns[0, :asked], data.returns[0, :asked])
    expected += functional.cross_entropy(actions[0, :3], data.actions[0, :3])
    (loss,) = fit(model, data, steps=1, batch_size=4, seed=0)
    assert loss == pytest.approx(float(expected), abs=1e-5)


def test_an_emphasised_step_counts_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    fp32(monkeypatch)
    data = replace(episodes(1), lengths=torch.tensor([3]))
    with torch.no_grad():
        returns, _ = build()(data.returns[:, :-1], data.states, data.actions)
    plain, emphasized = (
        fit(build(), data, steps=1, batch_size=2, emphasis=emphasis, seed=0)[0] for emphasis in (None, 3)
    )
    extra = functional.cross_entropy(returns[0, 3:4], data.returns[0, 3:4])
    assert emphasized - plain == pytest.approx(float(extra), abs=1e-5)


@pytest.mark.parametrize("order", [CRITIC_ORDER, GRAPH_ORDER])
def test_what_padding_holds_does_not_matter(order: tuple[str, ...]) -> None:
    clean = episodes()
    past = torch.arange(K) >= clean.lengths[:, None]
    dirty = replace(
        clean,
        returns=clean.returns.masked_fill(torch.arange(K + 1) > clean.lengths[:, None], 2),
        states=clean.states.masked_fill(past, 6),
        actions=clean.actions.masked_fill(past, 3),
    )
    assert not torch.equal(clean.returns, dirty.returns)
    one, other = (fit(build(order), data, steps=3, batch_size=16, seed=0) for data in (clean, dirty))
    assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.slow
def test_withheld_returns_are_never_read() -> None:
    for told in (True, False):
        model = build()
        seen: list[Tensor] = []
        model.embed_return.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        fit(model, episodes(), steps=2, batch_size=8, give_returns=told, seed=0)
        assert all(bool((values == model.withheld).all()) != told for values in seen) and len(seen) == 2


def test_training_learns_returns_and_actions() -> None:
    model = build()
    progress: list[tuple[int, int]] = []
    history = fit(
        model,
        episodes(400),
        steps=150,
        batch_size=32,
        lr=1e-2,
        warmup=10,
        give_returns=False,
        seed=0,
        progress=lambda done, total: progress.append((done, total)),
    )
    # The outcome is open before the first state is seen, which one prediction in four or so cannot avoid.
    assert history[0] > 1.5 and sum(history[-10:]) / 10 < 0.3
    assert progress == [(step, 150) for step in range(1, 151)]
    data = episodes(40)
    with torch.no_grad():
        returns, actions = model(torch.full_like(data.states, model.withheld), data.states, data.actions)
    likely = returns.softmax(dim=-1)[..., 1]
    assert (likely[:, 0] - 0.5).abs().max() < 0.15
    odd = data.states[:, 0] % 2 == 1
    assert likely[odd, 1].min() > 0.9 and likely[~odd, 1].max() < 0.1
    assert (actions[:, 0].argmax(dim=-1) == data.actions[:, 0]).all()


def test_training_is_a_function_of_its_seed() -> None:
    state = torch.get_rng_state()
    histories = [fit(build(seed=seed), episodes(), steps=3, batch_size=8, seed=seed) for seed in (0, 0, 1)]
    assert histories[0] == histories[1] != histories[2]
    assert torch.equal(torch.get_rng_state(), state)
    same, other = (
        fit(build(), episodes(), steps=3, batch_size=8, seed=seed) for seed in (0, 1)
    )  # the batches alone
    assert same == histories[0] != other


def test_divergence_is_an_error() -> None:
    with pytest.raises(TrainingDiverged, match="gradient step"):
        fit(build(), episodes(), steps=5, lr=1e30, warmup=1, seed=0)
