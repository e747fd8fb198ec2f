"""Return dropout and guidance: what is dropped, and what is done about it when acting (methods: section 10, 24)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, random_window
from torch import nn

from rayrl_dt import UserError
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.huggingface import to_huggingface
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.decoupled import DecoupledTrunk
from rayrl_dt.models.return_embedding import ReturnEmbedding
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.return_shift import shifted
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.serving.policy import SequencePolicy

MakeStore = Callable[..., TrajectoryStore]
SLOTS, STEPS = 3, 9
GUIDED = [name for name, row in BACKBONES.items() if "return_dropout" in row.options]


@pytest.fixture(params=GUIDED)
def model(make_store: MakeStore, request: pytest.FixtureRequest) -> SequenceModel:
    return build_model(make_store(), backbone=request.param, return_dropout=0.3)


def without_returns(model: SequenceModel) -> SequenceModel:
    """The same policy with the return's way in cut off: whatever is asked for, it reads what stands for nothing."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, ReturnEmbedding):
            assert module.nothing is not None
            with torch.no_grad():
                module.weight.zero_()
                module.bias.copy_(module.nothing)
    if isinstance(other.trunk, DecoupledTrunk):
        for parameter in other.trunk.modulation.parameters():
            nn.init.zeros_(parameter)
    return other


def context_of(model: SequenceModel) -> ContextBuffer:
    """A context of slots whose episodes began at different steps, as it was shown to a policy."""
    rng, context = np.random.default_rng(0), ContextBuffer.of(model.spec, SLOTS, 6)
    for step in range(STEPS):
        starting = np.array([step == 0, step == 5, step == 8])
        context.clear(starting)
        context.append(rng.normal(size=SLOTS) * 5, rng.normal(size=(SLOTS, 3)), np.full(SLOTS, step))
        if step + 1 < STEPS:
            context.set_actions(rng.uniform(-1, 1, (SLOTS, 2)))
    return context


@torch.no_grad()
@pytest.mark.parametrize("rows", [None, np.array([0, 2])])
def test_one_is_the_policy_and_zero_acts_on_nothing_bit_for_bit(
    model: SequenceModel, rows: np.ndarray[Any, Any] | None
) -> None:
    context = context_of(model)
    window, blind = context.window(rows).to_torch(), without_returns(model)
    one = acting_plan(model, context, "fp32", guidance=1.0)
    assert torch.equal(one.outputs(rows), acting_plan(model, context, "fp32").outputs(rows))
    found = acting_plan(model, context, "fp32", guidance=0.0).outputs(rows)
    if isinstance(model.trunk, DecoupledTrunk):
        assert torch.equal(found, acting_plan(blind, context, "fp32").outputs(rows))
    else:
        assert torch.equal(found, blind(window, last_only=True)[:, -1])
    assert (found - one.outputs(rows)).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    ("spaces", "config"),
    [({}, {}), ({}, {"head": "gaussian"}), ({"actions": 4, "first_action": 3}, {})],
    ids=["deterministic", "gaussian", "discrete"],
)
def test_more_goes_beyond_before_the_tanh(
    make_store: MakeStore, spaces: dict[str, int], config: dict[str, Any]
) -> None:
    for backbone in GUIDED:
        model = build_model(make_store(**spaces), backbone=backbone, return_dropout=0.3, **config)
        window = random_window(model, [6, 2, 4])
        context = ContextBuffer.of(model.spec, 3, 6)
        for step in range(6):
            values = (getattr(window, name)[:, step].numpy() for name in ("returns_to_go", "observations"))
            returns, observations = values
            context.append(returns[:, 0], observations, window.timesteps[:, step].numpy())
            context.clear(~window.mask[:, step].numpy())
            if step < 5:
                context.set_actions(window.actions[:, step].numpy())
        asked, unasked = (
            each(window, last_only=True)[:, -1].double() for each in (model, without_returns(model))
        )
        if config == {} and spaces == {}:
            asked, unasked = asked.atanh(), unasked.atanh()
        wanted = unasked + 2.5 * (asked - unasked)
        if config:  # the spread is not guided
            wanted[:, 2:] = asked[:, 2:]
        elif not spaces:
            wanted = wanted.tanh()
        found = acting_plan(model, context, "fp32", guidance=2.5).outputs(None)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


def test_candidates_of_a_double_check_are_guided_too(model: SequenceModel) -> None:
    context = context_of(model)
    window, blind = context.window().to_torch(), without_returns(model)
    shifts = torch.tensor([[-3.0], [4.0]]).expand(-1, SLOTS)
    found = acting_plan(model, context, "fp32", guidance=2.0).outputs_for(shifts, None)
    with torch.no_grad():
        nothing = blind(window, last_only=True)[:, -1].double().atanh()
        for shift, each in zip((-3.0, 4.0), found, strict=True):
            moved = replace(window, returns_to_go=window.returns_to_go + shift)
            asked = model(moved, last_only=True)[:, -1].double().atanh()
            wanted = torch.tanh(2.0 * asked - nothing)
            torch.testing.assert_close(each.double(), wanted, rtol=1e-3, atol=1e-4)


def test_with_the_decoupled_backbone_it_costs_a_head(make_store: MakeStore) -> None:
    model = build_model(make_store(), backbone="decoupled", return_dropout=0.3)
    context = context_of(model)
    plan, features = acting_plan(model, context, "fp32", guidance=3.0), []
    inner = plan._plan  # type: ignore[attr-defined]
    computed = inner.features
    inner.features = lambda *args: features.append(1) or computed(*args)
    plan.outputs(None)
    assert len(features) == 1


def test_windows_are_dropped_whole_at_the_rate_asked_for(model: SequenceModel) -> None:
    window = random_window(model, [6, 3, 1, 5] * 500)
    assert model.dropping_returns(window) is window, "it acts on what it is asked for"
    model.train().reseed(4)
    first, second = model.dropping_returns(window), model.dropping_returns(window)
    dropped = first.returns_to_go.isnan().flatten(1)
    assert torch.equal(dropped.all(dim=1), dropped.any(dim=1))
    assert abs(dropped[:, 0].double().mean() - 0.3) < 3 * (0.3 * 0.7 / 2000) ** 0.5
    assert torch.equal(first.returns_to_go[~dropped], window.returns_to_go[~dropped])
    assert not torch.equal(second.returns_to_go.isnan(), first.returns_to_go.isnan())
    model.reseed(4)
    assert torch.equal(model.dropping_returns(window).returns_to_go.isnan(), first.returns_to_go.isnan())


def test_it_learns_what_stands_for_nothing_and_whole_windows_teach_nothing_of_it(
    model: SequenceModel,
) -> None:
    window = random_window(model, [6, 3, 1, 5])
    nothing = [each for name, each in model.named_parameters() if name.endswith(".nothing")]
    assert len(nothing) == (model.spec.model.backbone != "decoupled")
    for returns, taught in ((window.returns_to_go, False), (window.returns_to_go * torch.nan, True)):
        asked = replace(window, returns_to_go=returns)
        loss = imitation_loss(model, model.train()(asked), asked)
        gradients = torch.autograd.grad(loss, [*nothing, model.head.weight])
        assert all(each.isfinite().all() for each in gradients)
        assert all(bool(each.any()) == taught for each in gradients[:-1])


@pytest.mark.parametrize("backbone", GUIDED)
def test_without_it_nothing_is_new(make_store: MakeStore, backbone: str) -> None:
    plain = build_model(make_store(), backbone=backbone).train()
    window = random_window(plain, [6, 3])
    assert plain.dropping_returns(window) is window
    assert not any(name.endswith(".nothing") for name in plain.state_dict())
    asked_nothing = replace(window, returns_to_go=window.returns_to_go * torch.nan)
    assert plain(asked_nothing).isnan().any(), "a NaN is an error, and stays one"


def test_a_dropped_window_has_no_order(model: SequenceModel) -> None:
    window = random_window(model, [6, 3])
    returns = window.returns_to_go.clone()
    returns[0] = torch.nan
    moved, shift = shifted(replace(window, returns_to_go=returns), torch.tensor([2.0, 0.5]), -9.0, 9.0)
    assert moved[0].isnan().all() and torch.isfinite(moved[1]).all()
    assert shift[0] == 0 and shift[1] != 0


def test_it_travels_with_the_policy(model: SequenceModel, tmp_path: Path) -> None:
    spec = model.spec.acting(context_length=None, action_selection=None, guidance=2.0)
    folder = save_bundle(spec, model.state_dict(), tmp_path / "policy")
    assert Bundle.open(folder).spec.guidance == 2.0
    policy, actor = SequencePolicy.load(folder), VectorActor(model, 1, guidance=2.0)
    plain = SequencePolicy.load(folder, guidance=1.0)
    for each in (policy, plain):
        each.reset(9.0)
    rng = np.random.default_rng(0)
    for step in range(4):
        seen = rng.normal(size=3).astype(np.float32)
        wanted = actor.act(seen[None], np.zeros(1), np.array([step == 0]), np.array([9.0]))[0]
        assert np.array_equal(policy.act(seen, 0.0), wanted)
        assert not np.array_equal(plain.act(seen, 0.0), wanted)


def test_another_strength_holds_from_the_next_step_on(model: SequenceModel) -> None:
    rng, actors = np.random.default_rng(0), [VectorActor(model, 2), VectorActor(model, 2, guidance=2.0)]
    for step in range(5):
        if step == 3:
            actors[0].guide(2.0)
        seen, starting = rng.normal(size=(2, 3)).astype(np.float32), np.full(2, step == 0)
        found = [actor.act(seen, np.zeros(2), starting, np.full(2, 5.0)).copy() for actor in actors]
        for actor in actors:  # so that they see the same windows
            actor._context.set_actions(np.zeros((2, 2)))
        assert np.allclose(*found, atol=1e-5) == (step >= 3)


def test_what_cannot_be_guided_is_refused(make_store: MakeStore) -> None:
    plain = build_model(make_store())
    with pytest.raises(
        UserError, match=r"guidance is 2\.0.*never learned to act on no return.*return_dropout"
    ):
        plain.spec.acting(context_length=None, action_selection=None, guidance=2.0)
    guided = build_model(make_store(), return_dropout=0.1)
    with pytest.raises(UserError, match="guidance is -1"):
        guided.spec.acting(context_length=None, action_selection=None, guidance=-1.0)
    with pytest.raises(UserError, match=r"return_dropout 0\.1"):
        to_huggingface(guided)
    for backbone in sorted({*BACKBONES} - {*GUIDED}):
        with pytest.raises(UserError, match=rf"return_dropout 0.1 is for backbone .*not '{backbone}'"):
            build_model(make_store(), backbone=backbone, return_dropout=0.1)
    assert {"reinformer", "no-return", "mlp"} == {*BACKBONES} - {*GUIDED}
