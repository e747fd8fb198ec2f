from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch

from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.rollout import EpisodeRecord, Rollouts
from rayrl_dt.types import Normalizer, Trajectory, Window

MakeStore = Callable[..., TrajectoryStore]


def arrays(steps: int = 3) -> dict[str, Any]:
    return {
        "observations": np.zeros((steps + 1, 2), np.float32),
        "actions": np.zeros((steps, 1), np.float32),
        "rewards": np.arange(steps, dtype=np.float32),
        "terminated": True,
    }


def test_a_trajectory_knows_its_length_and_return() -> None:
    trajectory = Trajectory(**arrays(4))
    assert (len(trajectory), trajectory.episode_return) == (4, 6.0)
    with pytest.raises(FrozenInstanceError):
        trajectory.terminated = False


def test_returns_are_summed_in_double_precision() -> None:
    rewards = np.full(100_000, 0.1, np.float32)
    values = {**arrays(100_000), "rewards": rewards}
    assert Trajectory(**values).episode_return == pytest.approx(float(np.float32(0.1)) * 100_000, rel=1e-12)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    values = arrays()
    values[name][-1] = value
    with pytest.raises(UserError, match=name):
        Trajectory(**values)


@pytest.mark.parametrize(
    ("name", "count"),
    [("observations", 3), ("observations", 5), ("actions", 2), ("actions", 4), ("rewards", 2)],
)
def test_lengths_must_agree(name: str, count: int) -> None:
    values = arrays()
    values[name] = np.resize(values[name], (count, *values[name].shape[1:]))
    with pytest.raises(UserError, match=r"T\+1, T and T"):
        Trajectory(**values)


def test_an_episode_without_steps_is_refused() -> None:
    with pytest.raises(UserError, match="no steps"):
        Trajectory(**arrays(0))


def test_discrete_actions_and_images_are_accepted() -> None:
    values = {**arrays(), "actions": np.array([0, 1, 2]), "observations": np.zeros((4, 2, 2), np.uint8)}
    assert len(Trajectory(**values)) == 3


@pytest.mark.parametrize("successors", [False, True])
def test_a_window_survives_the_way_through_a_dict(make_store: MakeStore, successors: bool) -> None:
    window = windows.sample(make_store(), np.random.default_rng(0), 4, 5, successors=successors)
    values = window.to_dict()
    assert ("next" in values) == ("rewards" in values) == successors
    again = Window.from_dict({**values, "loss_mask": 1})
    assert (again.batch_size, again.context_length) == (4, 5)
    assert_equal(window, again)


def assert_equal(one: Window[Any], other: Window[Any]) -> None:
    expected, found = one.to_dict(), other.to_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if name == "next":
            assert_equal(one.next, other.next)
        else:
            np.testing.assert_array_equal(value, found[name])


def test_a_window_as_tensors_shares_memory_and_keeps_types(make_store: MakeStore) -> None:
    window = windows.sample(make_store(actions=3), np.random.default_rng(0), 4, 5, successors=True)
    tensors = window.to_torch()
    assert_equal(window, tensors)
    assert tensors.actions.dtype == tensors.timesteps.dtype == torch.int64
    assert (tensors.mask.dtype, tensors.observations.dtype) == (torch.bool, torch.float32)
    window.observations[0, 0, 0] = 123
    assert tensors.observations[0, 0, 0] == 123


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_last_steps_of_a_window(make_store: MakeStore, steps: int) -> None:
    store = make_store(lengths=(9,))
    episodes, offsets = np.array([0, 0]), np.array([0, 4])
    window = windows.gather(store, episodes, offsets, 5, successors=True)
    shorter = windows.gather(store, episodes, offsets + 5 - steps, steps, successors=True)
    assert_equal(window.last(steps), shorter)


def test_the_normalizer_is_exact_in_chunks() -> None:
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(1001, 3)) * [0.1, 1, 1e3] + [0, -5, 1e4]).astype(np.float32)
    for chunk in (7, 1000, 5000):
        fitted = Normalizer.fit(data, chunk=chunk)
        np.testing.assert_allclose(fitted.mean, data.mean(0, dtype=np.float64), rtol=1e-6)
        np.testing.assert_allclose(fitted.std, data.std(0, dtype=np.float64) + 1e-6, rtol=1e-5)
        assert fitted.mean.dtype == fitted.std.dtype == np.float32
    normal = fitted.apply(data)
    np.testing.assert_allclose(normal.std(0), 1, rtol=2e-3)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-3)


def test_what_never_varies_is_not_blown_up() -> None:
    data = np.full((50, 2), 7.0, np.float32)
    data[:, 1] = np.arange(50)
    fitted = Normalizer.fit(data)
    assert fitted.std[0] == 1.0
    assert abs(fitted.apply(np.array([7.5, 0], np.float32))[0]) <= 0.5


def test_identity_changes_nothing() -> None:
    data = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(Normalizer.identity((3,)).apply(data), data)


def test_windows_are_frozen(make_store: MakeStore) -> None:
    window = windows.sample(make_store(), np.random.default_rng(0), 2, 3)
    with pytest.raises(FrozenInstanceError):
        window.mask = window.mask
    assert replace(window).mask is window.mask


def test_reprs_show_shapes_and_not_numbers(make_store: MakeStore) -> None:
    trajectory = Trajectory(**arrays(300))
    assert repr(trajectory) == (
        "Trajectory(observations=float32(301, 2), actions=float32(300, 1), rewards=float32(300,), terminated=True)"
    )
    window = windows.sample(make_store(), np.random.default_rng(0), 4, 5, successors=True)
    for shown in (repr(window), repr(window.to_torch())):
        assert shown.startswith("Window(returns_to_go=float32(4, 5, 1), observations=float32(4, 5, ")
        assert "mask=bool(4, 5)" in shown and ", next=Window(" in shown and "[" not in shown
    assert repr(Normalizer.identity((3,))) == "Normalizer(mean=float32(3,), std=float32(3,))"


def test_reprs_of_rollouts_count_their_episodes() -> None:
    episode = EpisodeRecord(1.0, 2.0, 3, Trajectory(**arrays(3)))
    assert repr(episode).endswith(
        "length=3, trajectory=Trajectory(observations=float32(4, 2), "
        "actions=float32(3, 1), rewards=float32(3,), terminated=True))"
    )
    assert repr(Rollouts((episode,) * 140, 420, 1.25)) == "Rollouts(140 episodes, 420 steps, 1.2 s)"
