"""Drawing rare returns more often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rayrl_dt.data import windows
from rayrl_dt.data.balance import BINS, episode_law
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory

MakeStore = Callable[..., TrajectoryStore]


@pytest.fixture
def skewed(make_store: MakeStore) -> TrajectoryStore:
    """90 episodes of 10 steps with return 0, 9 of 20 steps with return 1, one of 5 steps with return 2."""
    info: DatasetInfo = make_store().info
    episodes = []
    for count, length, total in ((90, 10, 0.0), (9, 20, 1.0), (1, 5, 2.0)):
        for _ in range(count):
            rewards = np.zeros(length, np.float32)
            rewards[-1] = total
            observations = np.zeros((length + 1, 3), np.float32)
            episodes.append(
                Trajectory(observations, np.zeros((length, 2), np.float32), rewards, terminated=True)
            )
    return TrajectoryStore.from_trajectories(episodes, info)


def shares(store: TrajectoryStore, law: np.ndarray) -> np.ndarray:
    """The probability of each of the three returns."""
    probabilities = np.diff(law, prepend=0.0)
    return np.array([probabilities[store.episode_returns == value].sum() for value in (0, 1, 2)])


def test_no_balance_is_proportional_to_length(skewed: TrajectoryStore) -> None:
    law = episode_law(skewed, 0.0)
    np.testing.assert_allclose(np.diff(law, prepend=0.0), skewed.lengths / skewed.num_steps)


def test_full_balance_draws_all_returns_alike(skewed: TrajectoryStore) -> None:
    np.testing.assert_allclose(shares(skewed, episode_law(skewed, 1.0)), [1 / 3] * 3)


def test_half_balance_takes_the_square_root(skewed: TrajectoryStore) -> None:
    roots = np.sqrt([900.0, 180.0, 5.0])
    np.testing.assert_allclose(shares(skewed, episode_law(skewed, 0.5)), roots / roots.sum())


def test_samples_follow_the_law_and_stay_uniform_within_an_episode(skewed: TrajectoryStore) -> None:
    law = episode_law(skewed, 1.0)
    count = 30_000
    window = windows.sample(skewed, np.random.default_rng(0), count, 1, law=law)
    rare = window.timesteps[(window.returns_to_go == 2.0).all(axis=(1, 2)), 0]
    assert abs(len(rare) / count - 1 / 3) < 4 * np.sqrt(2 / 9 / count)
    frequencies = np.bincount(rare, minlength=5) / len(rare)
    assert np.abs(frequencies - 0.2).max() < 4 * np.sqrt(0.16 / len(rare))


def test_one_return_only_changes_nothing(make_store: MakeStore) -> None:
    store = make_store(lengths=(4, 4))
    same = TrajectoryStore.from_trajectories([store.trajectory(0)] * 3, store.info)
    np.testing.assert_allclose(episode_law(same, 1.0), [1 / 3, 2 / 3, 1.0])
    assert BINS > 1
