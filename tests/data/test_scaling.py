"""Bounds that say nothing, and features that do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from rayrl_dt.data import preview
from rayrl_dt.data.filters import below_return
from rayrl_dt.data.scaling import action_range, return_scale, reward_scale, scale_notes
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.types import Normalizer


def bounded(store: TrajectoryStore, low: Any, high: Any) -> TrajectoryStore:
    space = gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    return replace(store, info=replace(store.info, action_space=space))


@pytest.mark.parametrize("far", [1e6, 1e38, np.inf])
def test_bounds_far_beyond_the_data_are_none(make_store: Any, far: float) -> None:
    store = make_store()
    low, high = store.actions.min(axis=0), store.actions.max(axis=0)
    found = action_range(bounded(store, [-far, -1], [far, far]))
    np.testing.assert_array_equal(found, [[low[0], -1], high])
    notes = scale_notes(bounded(store, [-far, -1], [far, far]))
    assert len(notes) == (0 if np.isinf(far) else 2)
    assert all("more than 100 times as large as the data's actions" in note for note in notes)
    assert preview.statistics(bounded(store, [-far, -1], [far, far]))["notes"] == notes


@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
def test_wrappers_that_learn_while_they_run_are_named(make_store: Any, wrapper: Any) -> None:
    spec = wrapper(gym.make("Pendulum-v1")).spec
    store = make_store()
    store = replace(store, info=replace(store.info, env_spec=spec))
    (note,) = preview.statistics(store)["notes"]
    assert note.startswith(f"the data were recorded in {wrapper.__name__}, whose running statistics are not")


def test_bounds_that_the_data_come_near_are_kept(make_store: Any) -> None:
    store = make_store()
    np.testing.assert_array_equal(action_range(bounded(store, [-1, -50], [1, 50])), [[-1, -50], [1, 50]])
    still = replace(store, actions=np.zeros_like(store.actions))
    np.testing.assert_array_equal(action_range(bounded(still, [-2, -2], [2, 2])), [[-2, -2], [2, 2]])
    assert scale_notes(still) == []


def test_a_nearly_constant_feature_is_not_blown_up(make_store: Any) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(5000, 4)).astype(np.float32)
    for feature, constant in ((1, 0.5), (2, 0.0)):
        data[:, feature] = constant + 1e-4 * rng.normal(size=5000)
    fitted = Normalizer.fit(data, chunk=700)
    assert fitted.raised == (1, 2)
    shifted = fitted.apply(np.array([0, 0.54, 0.04, 0], np.float32))
    assert np.abs(shifted).max() < 10
    ordinary = Normalizer.fit(data[:, [0, 3]])
    np.testing.assert_array_equal(fitted.std[[0, 3]], ordinary.std)
    store = replace(make_store(), normalizer=fitted)
    assert [note.partition(" of observations is nearly constant")[0] for note in scale_notes(store)] == [
        "feature 1",
        "feature 2",
    ]


def test_a_unit_that_makes_a_feature_vanish_is_named(make_store: Any) -> None:
    store = make_store()
    store.observations[:, 1] *= 1e-9
    store.observations[:, 2] = 7
    store = replace(store, normalizer=Normalizer.fit(store.observations))
    (note,) = preview.statistics(store)["notes"]
    assert note.startswith("feature 1 of observations varies by less than 1e-06, which counts as constant")


def test_a_single_action_is_in_the_middle(make_store: Any) -> None:
    store = make_store()
    store.actions[:, 1] = 0.5
    for low, high, wanted in ((-np.inf, 1e9, (0, 1)), (0.5, np.inf, (0.5, 1)), (0.5, 0.5, (0, 1))):
        np.testing.assert_array_equal(
            action_range(bounded(store, [-1, low], [1, high])), [[-1, wanted[0]], [1, wanted[1]]]
        )


def test_a_small_signal_is_no_noise() -> None:
    # A latitude: it varies by a thousandth, smoothly.
    latitude = 48.1 + 1e-3 * np.sin(np.arange(5000) / 50)
    data = np.stack([latitude, np.random.default_rng(0).normal(size=5000)], axis=1)
    fitted = Normalizer.fit(data)
    assert fitted.raised == ()
    assert fitted.std[0] == pytest.approx(latitude.std(), rel=1e-2)


@pytest.mark.parametrize(
    ("rewards", "scale"),
    [
        ([3.0, -5.0], 1.0),
        # However rare they are, the values of a critic are as large as these.
        ([1.0] + 400 * [0.0], 0.25),
        # Beside costs of every step, a success is bounded by 256.
        (400 * [-0.001] + [1.0], 1 / 256),
        ([0.0, 0.0], 1.0),
    ],
)
@pytest.mark.parametrize("unit", [1.0, 1024.0, 1 / 1024])
def test_rewards_are_scaled_by_their_size(
    make_store: Any, rewards: list[float], scale: float, unit: float
) -> None:
    store = make_store(lengths=(len(rewards),))
    store = replace(store, rewards=np.array(rewards, np.float32) * np.float32(unit))
    wanted = scale * unit if any(rewards) else 1.0
    assert reward_scale(store) == pytest.approx(wanted, rel=1e-6)
    assert any("all rewards are 0" in note for note in scale_notes(store)) != any(rewards)


def test_scales_are_those_of_what_a_view_holds(make_store: Any) -> None:
    store = make_store(lengths=(3, 3))
    store = replace(store, rewards=np.array([1, 2, 3, 400, 500, 600], np.float32))
    store = replace(store, returns_to_go=np.array([6, 5, 3, 1500, 1100, 600], np.float32))
    assert (reward_scale(store), return_scale(store)) == (251 / 4, 375.0)
    view = below_return(store, 100.0)
    assert (reward_scale(view), return_scale(view)) == (0.5, 1.5)
