"""Sensitivity of policies that are functions of the target by construction, and courses that can be counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, random_window, store_for
from torch import Tensor

from rayrl_dt import envs
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.diagnosis.conditioning import return_courses, sensitivity
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_model
from rayrl_dt.evaluation.targets import ReturnRange, TargetReturns
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
K = 6
RETURNS = ReturnRange(-500.0, -100.0, 100.0, 900.0)
"""A range of 200, which minimum and maximum have no part in."""


class Toy(SequenceModel):
    """Acts by a formula of the newest return-to-go (raw)."""

    formula: Callable[[Tensor], Tensor]

    def forward(self, window: Window[Tensor], *, last_only: bool = False) -> Tensor:
        assert last_only, "sensitivity is about the action that is taken"
        outputs = self.formula(window.returns_to_go[:, -1:])
        return outputs.expand(-1, -1, self.spec.action_size)


def toy(store: TrajectoryStore, formula: Callable[[Tensor], Tensor]) -> Toy:
    model = Toy(build_model(store).spec)
    model.formula = formula
    return model


def zeros(model: SequenceModel) -> Window[Tensor]:
    """Windows whose returns-to-go are all zero."""
    window = random_window(model, [K, 3, 1])
    return replace(window, returns_to_go=torch.zeros_like(window.returns_to_go))


@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
def test_a_linear_policy_has_its_slope_everywhere(make_store: MakeStore, delta: float) -> None:
    # Over one range of returns the action moves by 0.6 of its 2: three tenths of its range.
    model = toy(make_store(), lambda returns: 0.6 * returns / 200.0)
    found = sensitivity(model, [random_window(model, [K, 2])], RETURNS, delta=delta)
    assert found.values == pytest.approx([0.3] * 9, rel=1e-4)
    assert found.at_data == pytest.approx(0.3, rel=1e-4)
    assert (found.span, found.windows, found.delta) == (200.0, 2, pytest.approx(200 * delta))
    assert found.offsets == pytest.approx(np.linspace(-100, 100, 9))


def test_the_curve_says_at_which_targets_the_policy_reacts(make_store: MakeStore) -> None:
    model = toy(make_store(), lambda returns: 0.6 * returns.clamp(min=0.0) / 200.0)
    found = sensitivity(model, [zeros(model)], RETURNS, offsets=(-0.5, -0.1, 0.0, 0.1, 0.5), delta=0.05)
    assert found.values == pytest.approx([0.0, 0.0, 0.15, 0.3, 0.3], rel=1e-4, abs=1e-7)
    assert found.offsets == pytest.approx([-100, -20, 0, 20, 100])
    assert found.at_data == pytest.approx(0.15, rel=1e-4)


def test_a_guided_policy_is_measured_as_it_acts(make_store: MakeStore) -> None:
    plain = build_model(make_store(), return_dropout=0.25)
    with torch.no_grad():
        plain.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    guided = SequenceModel(replace(plain.spec, guidance=3.0))
    guided.load_state_dict(plain.state_dict())
    window = random_window(plain, [K, 3])

    def raw(shift: float) -> Tensor:
        with torch.no_grad():
            moved = replace(window, returns_to_go=window.returns_to_go + shift)
            return plain.eval()(moved, last_only=True)[:, -1].double().atanh()

    nothing, low, high = (raw(shift) for shift in (torch.nan, -20.0, 20.0))
    acted = [(nothing + 3.0 * (each - nothing)).tanh() for each in (low, high)]
    expected = float((acted[1] - acted[0]).abs().mean()) / 2 / (2 * 0.1)
    at_one, at_three = (
        sensitivity(model, [window], RETURNS, offsets=(0.0,), delta=0.1).values[0]
        for model in (plain, guided)
    )
    assert at_three == pytest.approx(expected, rel=1e-3) and at_three > 1.5 * at_one


def test_dimensions_and_directions_are_averaged_without_their_sign(make_store: MakeStore) -> None:
    signs = torch.tensor([1.0, -3.0])  # two action dimensions that move against each other
    model = toy(make_store(action_dim=2), lambda returns: signs * returns / 200.0)
    found = sensitivity(model, [zeros(model)], RETURNS, offsets=(0.0,))
    assert found.values == pytest.approx([(0.5 + 1.5) / 2], rel=1e-4)


def test_windows_of_several_batches_count_alike(make_store: MakeStore) -> None:
    model = toy(make_store(), lambda returns: 0.6 * returns.clamp(min=0.0) / 200.0)
    window = random_window(model, [K] * 3)
    reacting = replace(window, returns_to_go=torch.full_like(window.returns_to_go, 50.0))
    deaf = replace(window.last(K), returns_to_go=torch.full_like(window.returns_to_go, -50.0))
    one = Window(**{name: values[:1] for name, values in deaf.to_dict().items()})
    found = sensitivity(model, [reacting, one], RETURNS, offsets=(0.0,))
    assert found.windows == 4
    assert found.values == pytest.approx([0.3 * 3 / 4], rel=1e-4)


def test_discrete_actions_move_by_total_variation(make_store: MakeStore) -> None:
    model = toy(
        make_store(actions=4), lambda returns: torch.cat([returns / 50, 0 * returns.expand(-1, -1, 3)], -1)
    )
    found = sensitivity(model, [zeros(model)], RETURNS, offsets=(0.0,), delta=0.05)
    low, high = (np.exp(x) / (np.exp(x) + 3) for x in (-10 / 50, 10 / 50))  # probability of action 0
    assert found.values == pytest.approx([(high - low) / 0.1], rel=1e-4)


@pytest.mark.parametrize("actions", [None, 4])
def test_policies_that_cannot_see_the_target_have_no_sensitivity(
    make_store: MakeStore, actions: int | None
) -> None:
    store = make_store(actions=actions)
    for backbone in ("dt", "radt"):
        model = build_model(store, backbone=backbone)
        windows = [random_window(model, [1, 3, K])]
        assert min(sensitivity(model, windows, RETURNS).values) > 1e-3
        with torch.no_grad():
            model.trunk.embed_return.weight.zero_()
        assert set(sensitivity(model, windows, RETURNS).values) == {0.0}
    for backbone in ("no-return", "mlp"):
        model = build_model(store, backbone=backbone)
        assert set(sensitivity(model, [random_window(model, [K])], RETURNS).values) == {0.0}


def test_every_return_of_the_window_moves_and_the_window_stays(make_store: MakeStore) -> None:
    model = toy(make_store(), lambda returns: returns)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].returns_to_go))
    window = random_window(model, [K, 2])
    before = window.returns_to_go.clone()
    sensitivity(model, [window], RETURNS, offsets=(0.25,), delta=0.1)
    assert torch.equal(window.returns_to_go, before)
    torch.testing.assert_close(seen, [before + 50 - 20, before + 50 + 20])


def test_data_without_a_range_is_refused(make_store: MakeStore) -> None:
    model = toy(make_store(), lambda returns: returns)
    with pytest.raises(UserError, match="no range"):
        sensitivity(model, [zeros(model)], ReturnRange(0.0, 7.0, 7.0, 9.0))


def cartpole(**config: Any) -> SequenceModel:
    return build_model(store_for(envs.make("CartPole-v1")), **config)


def test_cartpole_uses_up_its_target_by_one_a_step() -> None:
    targets = (30.0, 5.0)
    counted: list[int] = []
    found = return_courses(
        cartpole(), targets, env="CartPole-v1", episodes_per_target=4, max_slots=4, progress=counted.append
    )
    assert [course.target for course in found] == list(targets) and sum(counted) == 8
    for course in found:
        assert len(course.lengths) == len(course.left) == 4 and len(set(course.lengths)) > 1
        steps = np.arange(max(course.lengths) + 1)
        expected = np.mean([course.target - np.minimum(steps, length) for length in course.lengths], axis=0)
        np.testing.assert_allclose(course.remaining, expected)
        assert course.left == tuple(course.target - length for length in course.lengths)
        assert course.left_mean == pytest.approx(course.remaining[-1])


def pendulum(steps: int = 12) -> str:
    return gym.make("Pendulum-v1", max_episode_steps=steps).spec.to_json()  # type: ignore[union-attr]


def test_a_course_is_what_the_policy_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayrl_dt.policy.actor import VectorActor

    shown: list[float] = []
    act = VectorActor.act

    def spy(self: VectorActor, *args: Any, **kwargs: Any) -> Any:
        actions = act(self, *args, **kwargs)
        shown.append(float(self.returns_to_go[0]))
        return actions

    monkeypatch.setattr(VectorActor, "act", spy)
    model = build_model(store_for(envs.make("Pendulum-v1")))
    (course,) = return_courses(model, [-300.0], env=pendulum(), episodes_per_target=1)
    assert len(shown) == 12 and course.lengths == (12,)
    np.testing.assert_allclose(course.remaining[:-1], shown, rtol=1e-6)
    assert course.remaining[-1] > course.remaining[-2] > -300.0, "its rewards are negative"


def test_courses_end_where_the_evaluation_says() -> None:
    model, targets = build_model(store_for(envs.make("Pendulum-v1"))), (-100.0, -20.0)
    model.spec = model.spec.acting(context_length=2, action_selection=None)
    options: dict[str, Any] = {"env": pendulum(), "episodes_per_target": 3, "max_slots": 4, "seed": 5}
    found = return_courses(model, targets, **options)
    assert found == return_courses(model, targets, **options)
    assert found != return_courses(model, targets, **{**options, "seed": 6})
    rolled = evaluate_model(model, TargetReturns(targets), **options)
    assert (
        rolled.episodes != evaluate_model(model, TargetReturns(targets), context_length=6, **options).episodes
    )
    for course in found:
        episodes = [episode for episode in rolled.episodes if episode.target == course.target]
        assert course.lengths == tuple(episode.length for episode in episodes)
        np.testing.assert_allclose(
            course.left, [course.target - e.episode_return for e in episodes], rtol=1e-5
        )
        assert course.left_mean == pytest.approx(np.mean(course.left)) == pytest.approx(course.remaining[-1])
        assert json.loads(json.dumps(course.to_json()))["left"] == list(course.left)


def test_what_is_left_counts_down_though_the_policy_is_shown_a_constant() -> None:
    model = build_model(store_for(envs.make("Pendulum-v1")), target_rule="constant")
    (held,) = return_courses(model, [-100.0], env=pendulum(), episodes_per_target=1)
    assert held.remaining[0] == -100.0 and held.remaining[-1] > -100.0, "its rewards are negative"


def test_unknown_and_other_environments_are_refused() -> None:
    with pytest.raises(UserError, match="is not recorded"):
        return_courses(cartpole(), [1.0])
    with pytest.raises(UserError, match="observations are"):
        return_courses(cartpole(), [1.0], env="Pendulum-v1")
