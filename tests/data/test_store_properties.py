"""A store on disk is the store, whatever its spaces, shapes and types."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import spaces
from hypothesis import given, settings

from rayrl_dt.data.store import ARRAYS, TrajectoryStore


def assert_equal(found: TrajectoryStore, wanted: TrajectoryStore) -> None:
    for name in ARRAYS:
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, err_msg=name)
    np.testing.assert_array_equal(found.normalizer.mean, wanted.normalizer.mean)
    np.testing.assert_array_equal(found.normalizer.std, wanted.normalizer.std)
    assert found.info == wanted.info and found.delayed_reward == wanted.delayed_reward


@settings(max_examples=20, deadline=None)
@given(store=spaces.stores())
def test_what_is_saved_is_opened(store: TrajectoryStore) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate((store, store.with_delayed_rewards())):
            saved = each.save(Path(folder) / str(number))
            assert_equal(TrajectoryStore.open(saved), each)
            # And once more from what was opened.
            again = TrajectoryStore.open(saved).save(Path(folder) / f"{number} again")
            assert_equal(TrajectoryStore.open(again), each)


@settings(max_examples=20, deadline=None)
@given(store=spaces.stores())
def test_episodes_go_in_and_come_out(store: TrajectoryStore) -> None:
    episodes = [store.trajectory(i) for i in range(store.num_episodes)]
    assert_equal(TrajectoryStore.from_trajectories(episodes, store.info), store)
    assert [len(each) for each in episodes] == store.lengths.tolist()
    returns = [float(np.sum(each.rewards, dtype=np.float64)) for each in episodes]
    np.testing.assert_allclose(store.episode_returns, returns, rtol=1e-5, atol=1e-5)
