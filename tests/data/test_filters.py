from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from rayrl_dt.data import filters
from rayrl_dt.data.scaling import action_range
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8).map(tuple),
    percent=st.sampled_from([1, 10, 25, 40, 62.5, 99.9, 100]),
)
def test_top_percent(make_store: Any, lengths: tuple[int, ...], percent: float) -> None:
    store = make_store(lengths=lengths)
    view = filters.top_percent(store, percent)
    best = int(np.argmax(store.episode_returns))
    kept = np.isin(store.starts, view.starts)
    assert kept[best]
    assert view.num_steps <= max(percent / 100 * store.num_steps, store.lengths[best])
    out = store.episode_returns[~kept]
    if len(out):
        assert view.episode_returns.min() >= out.max()
        # The best of the excluded episodes is the one that did not fit.
        first_out = np.flatnonzero(~kept)[np.argmax(out)]
        assert view.num_steps + store.lengths[first_out] > percent / 100 * store.num_steps
    assert view.normalizer is store.normalizer


def test_the_first_overflow_ends_the_selection(make_store: Any) -> None:
    store = make_store(lengths=(2, 6, 2))
    rewards = np.array([9, 0, 5, 0, 0, 0, 0, 0, 1, 0], np.float32)
    from rayrl_dt.data.returns import returns_to_go

    store.rewards, store.returns_to_go = rewards, returns_to_go(rewards, store.starts, store.lengths)
    # The second best episode (6 steps) does not fit into 50 %, so the third is out although it would.
    np.testing.assert_array_equal(filters.top_percent(store, 50).lengths, [2])
    np.testing.assert_array_equal(filters.top_percent(store, 80).lengths, [2, 6])


def test_hundred_percent_keeps_everything(make_store: Any) -> None:
    store = make_store()
    assert filters.top_percent(store, 100) is store


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan"), True, "10", None])
def test_bad_percentages_are_refused(make_store: Any, percent: Any) -> None:
    with pytest.raises(UserError, match=r"top_percent is .* above 0 and up to 100"):
        filters.top_percent(make_store(), percent)


def test_split(make_store: Any) -> None:
    store = make_store(lengths=tuple(range(1, 11)))
    first, second = filters.split(store, 0.3, seed=5)
    assert first.num_episodes == 3 and second.num_episodes == 7
    assert sorted([*first.lengths, *second.lengths]) == list(range(1, 11))
    again, _ = filters.split(store, 0.3, seed=5)
    np.testing.assert_array_equal(first.starts, again.starts)
    others = [filters.split(store, 0.3, seed=seed)[0].starts.tolist() for seed in range(5)]
    assert len({tuple(starts) for starts in others}) > 1
    tiny, rest = filters.split(store, 0.001, seed=0)
    assert tiny.num_episodes == 1 and rest.num_episodes == 9


def test_bad_splits_are_refused(make_store: Any) -> None:
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(UserError, match="above 0 and below 1"):
            filters.split(make_store(), fraction, seed=0)
    with pytest.raises(UserError, match="cannot be split"):
        filters.split(make_store(lengths=(4,)), 0.5, seed=0)


def test_below_return(make_store: Any) -> None:
    store = make_store(lengths=(3, 5, 8, 13))
    limit = float(np.sort(store.episode_returns)[2])
    view = filters.below_return(store, limit)
    assert sorted(view.episode_returns) == sorted(store.episode_returns[store.episode_returns < limit])
    with pytest.raises(UserError, match=r"no episode of .* is below -1000; the lowest has"):
        filters.below_return(store, -1000)


def test_below_return_knows_nothing_of_the_other_episodes(make_store: Any) -> None:
    store = make_store(lengths=(3, 5, 8, 13))
    best = int(store.episode_returns.argmax())
    store.actions[store.starts[best] :][: store.lengths[best]] = 70
    store = replace(store, info=replace(store.info, action_space=gym.spaces.Box(-np.inf, np.inf, (2,))))
    view = filters.below_return(store, float(store.episode_returns[best]))
    assert view.num_episodes == 3
    alone = TrajectoryStore.from_trajectories(
        [view.trajectory(n) for n in range(view.num_episodes)], store.info
    )
    np.testing.assert_array_equal(view.normalizer.mean, alone.normalizer.mean)
    np.testing.assert_array_equal(view.normalizer.std, alone.normalizer.std)
    np.testing.assert_array_equal(action_range(view), action_range(alone))
    np.testing.assert_array_equal(filters.top_percent(store, 40).normalizer.mean, store.normalizer.mean)
