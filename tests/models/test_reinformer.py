"""Reinformer's own invariants; those that it shares are in test_sequence_model.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_model, random_window
from torch import Tensor

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.reinformer import ReinformerTrunk
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.imitation import imitation_loss, return_loss
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
K = 6


@pytest.fixture(params=[False, True], ids=["two networks", "one network"])
def model(request: pytest.FixtureRequest, make_store: MakeStore) -> SequenceModel:
    return build(make_store(), shared_networks=request.param)


def build(store: TrajectoryStore, **config: Any) -> SequenceModel:
    return build_model(store, backbone="reinformer", **config)


def trunk_of(model: SequenceModel) -> ReinformerTrunk:
    assert isinstance(model.trunk, ReinformerTrunk)
    return model.trunk


def predicted(model: SequenceModel, window: Window[Tensor]) -> Tensor:
    with torch.no_grad():
        return trunk_of(model).predict_returns(model.inputs(window))


def changed(window: Window[Tensor], name: str, step: int) -> Window[Tensor]:
    values = getattr(window, name).clone()
    values[:, step] = -values[:, step] if name == "actions" else values[:, step] + 3
    return replace(window, **{name: values})


@pytest.mark.parametrize("step", range(K))
def test_a_predicted_return_knows_its_state_and_what_came_before(model: SequenceModel, step: int) -> None:
    """Invariant 22, first half: not its own return and action, nor anything later."""
    window = random_window(model, [K, K])
    for name in ("observations", "returns_to_go", "actions"):
        moved = (predicted(model, window) - predicted(model, changed(window, name, step))).abs().amax(dim=0)
        first = step if name == "observations" else step + 1
        assert (moved[:first] <= 1e-6).all()
        assert (moved[first:] > 1e-5).all()


@pytest.mark.parametrize("step", range(K))
def test_an_action_knows_the_return_of_its_step(model: SequenceModel, step: int) -> None:
    """Invariant 22, second half: what is inserted as the return decides the action."""
    window = random_window(model, [K, K])
    with torch.no_grad():
        moved = (model(window) - model(changed(window, "returns_to_go", step))).abs().amax(dim=(0, 2))
    assert (moved[:step] <= 1e-6).all()
    assert (moved[step:] > 1e-5).all()


@pytest.mark.parametrize("real", [[K, K], [2, 5]])
def test_all_ways_to_ask_agree(model: SequenceModel, real: list[int]) -> None:
    window = random_window(model, real)
    inputs, trunk = model.inputs(window), trunk_of(model)
    with torch.no_grad():
        features, returns = trunk.features_and_returns(inputs)
        torch.testing.assert_close(features, trunk(inputs), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(returns, trunk.predict_returns(inputs), rtol=1e-5, atol=1e-5)
        last = trunk.predict_returns(inputs, last_only=True)
    assert last.shape == (2, 1)
    torch.testing.assert_close(last, returns[:, -1:], rtol=1e-5, atol=1e-5)


def moved_by(model: SequenceModel, loss: Tensor) -> set[str]:
    """The parts of the model that a loss has a gradient in."""
    model.zero_grad()
    loss.backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    return {".".join(name.split(".")[:2]) if name.startswith("trunk.") else "head" for name in names}


def test_each_network_learns_from_its_own_loss(make_store: MakeStore) -> None:
    for shared in (False, True):
        model = build(make_store(), shared_networks=shared)
        window = random_window(model, [K, 3])
        features, returns = trunk_of(model).features_and_returns(model.inputs(window))
        actions = moved_by(model, imitation_loss(model, model.read_out(features), window))
        assert actions == {"head", "trunk.action_network"}
        _, returns = trunk_of(model).features_and_returns(model.inputs(window))
        learned = "action" if shared else "return"
        assert moved_by(model, return_loss(model, returns, window)) == {
            f"trunk.{learned}_network",
            "trunk.return_head",
        }


def test_returns_are_learned_in_scaled_units(make_store: MakeStore) -> None:
    """The unit does not enter the loss, and the prediction is in that of the inputs."""
    found = []
    for scale in (1.0, 50.0):
        model = build(make_store(), return_scale=scale)
        window = random_window(model, [K, 3])
        guess = window.returns_to_go[..., 0] / scale + 1.0 / scale
        found.append(return_loss(model, guess, window))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("delayed", [False, True])
def test_the_target_rule_is_predicted_unless_it_is_given(make_store: MakeStore, delayed: bool) -> None:
    store = make_store().with_delayed_rewards() if delayed else make_store()
    for given, resolved in (("auto", "predicted"), ("decrement", "decrement"), ("constant", "constant")):
        config = ModelConfig(backbone="reinformer", target_rule=given)
        spec = PolicySpec.from_store(config, store, return_scale=None)
        assert spec.model.target_rule == resolved
        assert PolicySpec.from_json(spec.to_json()).model == spec.model


def test_blocks_end_with_a_norm(model: SequenceModel) -> None:
    """Post-norm: with the last norm at zero and one, features are standardized."""
    network = trunk_of(model).action_network
    norm: Any = network.blocks[-1].norm_mlp
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.bias.zero_()
        features = model.trunk(model.inputs(random_window(model, [K])))
    torch.testing.assert_close(features.mean(dim=-1), torch.zeros(1, K), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(dim=-1, unbiased=False), torch.ones(1, K), rtol=0, atol=1e-3)
