from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from scipy import stats

from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.seeding import numpy_generator


def _reference(store: TrajectoryStore, episode: int, offset: int, k: int) -> dict[str, Any]:
    """One window and its successor, step by step."""
    trajectory = store.trajectory(episode)
    length = len(trajectory)
    to_go = [float(trajectory.rewards[t:].sum(dtype=np.float64)) for t in range(length)] + [0.0]
    zero_observation, zero_action = (
        np.zeros_like(trajectory.observations[0]),
        np.zeros_like(trajectory.actions[0]),
    )
    steps = list(range(offset, min(offset + k, length)))
    pad = k - len(steps)
    ended = [t == length - 1 and trajectory.terminated for t in steps]
    return {
        "returns_to_go": [[0.0]] * pad + [[to_go[t]] for t in steps],
        "observations": [zero_observation] * pad + [trajectory.observations[t] for t in steps],
        "actions": [zero_action] * pad + [trajectory.actions[t] for t in steps],
        "timesteps": [0] * pad + steps,
        "mask": [False] * pad + [True] * len(steps),
        "rewards": [0.0] * pad + [trajectory.rewards[t] for t in steps],
        "terminated": [False] * pad + ended,
        "next": {
            "returns_to_go": [[0.0]] * pad + [[to_go[t + 1]] for t in steps],
            "observations": [zero_observation] * pad + [trajectory.observations[t + 1] for t in steps],
            "actions": [zero_action] * pad + [trajectory.actions[t] for t in steps[1:]] + [zero_action],
            "timesteps": [0] * pad + [t + 1 for t in steps],
            "mask": [False] * pad + [True] * len(steps),
        },
    }


def _assert_equal(found: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert found.keys() == expected[0].keys()
    for name, values in found.items():
        rows = [row[name] for row in expected]
        if name == "next":
            _assert_equal(values, rows)
        else:
            np.testing.assert_array_equal(values, np.array(rows), err_msg=name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_windows_equal_a_step_by_step_reference(make_store: Any, data: st.DataObject) -> None:
    lengths = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6), label="lengths"))
    actions = data.draw(st.sampled_from([None, 4]), label="actions")
    store = make_store(lengths=lengths, actions=actions)
    if data.draw(st.booleans(), label="view"):
        count = len(lengths)
        store = store.select(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count)))
    k = data.draw(st.integers(1, 12), label="context length")
    steps = np.arange(store.num_steps)
    episodes, offsets = store.locate(steps)
    found = windows.gather(store, episodes, offsets, k, successors=True)
    expected = [_reference(store, e, o, k) for e, o in zip(episodes.tolist(), offsets.tolist(), strict=True)]
    _assert_equal(found.to_dict(), expected)


@pytest.mark.parametrize("lengths", [(1,), (5,), (4, 1, 5, 1)], ids=str)
@pytest.mark.parametrize("k", [1, 5, 8])
def test_every_start_batches_correctly(make_store: Any, lengths: tuple[int, ...], k: int) -> None:
    """One-step episodes, episodes no longer than K, and windows that start at the last step."""
    store = make_store(lengths=lengths)
    episodes, offsets = store.locate(np.arange(store.num_steps))
    window = windows.gather(store, episodes, offsets, k)
    np.testing.assert_array_equal(window.mask.sum(axis=1), np.minimum(k, store.lengths[episodes] - offsets))
    assert window.mask[:, -1].all()  # padding is on the left
    first = np.argmax(window.mask, axis=1)
    np.testing.assert_array_equal(window.timesteps[np.arange(len(first)), first], offsets)
    for values in (window.returns_to_go, window.observations, window.actions, window.timesteps):
        assert not values[~window.mask].any()


def test_return_to_go_within_a_window(make_store: Any) -> None:
    store = make_store(lengths=(12, 3, 20))
    window = windows.sample(store, np.random.default_rng(0), 128, 6, successors=True)
    assert window.rewards is not None and window.next is not None
    now, after = window.returns_to_go[..., 0], window.next.returns_to_go[..., 0]
    np.testing.assert_array_equal((now - after)[window.mask], window.rewards[window.mask])
    # The successor's returns are the window's own, one step on, and 0 behind the end of the episode.
    real = window.mask[:, :-1]
    np.testing.assert_array_equal(after[:, :-1][real], now[:, 1:][real])
    whole = windows.gather(store, np.array([0]), np.array([0]), 20, successors=True)
    assert whole.next is not None
    assert whole.returns_to_go[0, 8, 0] == store.episode_returns[0]
    assert whole.returns_to_go[0, -1, 0] == store.rewards[11]
    assert whole.next.returns_to_go[0, -1, 0] == 0


def test_starts_are_uniform_over_steps(make_store: Any) -> None:
    store = make_store(lengths=(1, 2, 7, 30, 60), seed=3)
    counts = np.zeros(store.num_steps, np.int64)
    for step in range(300):
        window = windows.sample(store, numpy_generator(0, "test", step), 64, 5)
        first = np.argmax(window.mask, axis=1)
        row = np.arange(len(first))
        # Observation 0 numbers the observations of all episodes: each episode has one more than steps.
        numbers = window.observations[row, first, 0].astype(np.int64)
        episodes = np.searchsorted(np.cumsum(store.lengths + 1), numbers, side="right")
        np.add.at(counts, numbers - episodes, 1)
    assert counts.sum() == 300 * 64
    assert stats.chisquare(counts).pvalue > 1e-3


def test_starts_are_uniform_in_a_view(make_store: Any) -> None:
    store = make_store(lengths=(4, 2, 7, 30, 6)).select([4, 0, 2])
    steps = store.locate(np.random.default_rng(0).integers(store.num_steps, size=20_000))
    _, counts = np.unique(np.stack(steps), axis=1, return_counts=True)
    assert len(counts) == 17
    assert stats.chisquare(counts).pvalue > 1e-3


def test_equal_generators_give_equal_windows(make_store: Any) -> None:
    store = make_store()
    one, two = (windows.sample(store, numpy_generator(1, "test", 5), 16, 4).to_dict() for _ in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_types_and_shapes(make_store: Any) -> None:
    window = windows.sample(make_store(actions=3), np.random.default_rng(0), 8, 4, successors=True)
    assert window.returns_to_go.shape == (8, 4, 1) and window.returns_to_go.dtype == np.float32
    assert window.observations.shape == (8, 4, 3) and window.observations.dtype == np.float32
    assert window.actions.shape == (8, 4) and window.actions.dtype == np.int64
    assert window.timesteps.dtype == np.int64 and window.mask.dtype == bool
    assert window.next is not None and window.next.actions.dtype == np.int64
    tensors = window.to_torch()
    assert tensors.next is not None and tensors.next.observations.shape == (8, 4, 3)


def test_windows_may_tell_of_their_whole_episode(make_store: Any) -> None:
    store = make_store()
    plain, told = (
        windows.sample(store, np.random.default_rng(0), 50, 4, episode_returns=asked)
        for asked in (False, True)
    )
    assert plain.episode_returns is None and told.episode_returns is not None
    assert np.array_equal(plain.observations, told.observations)
    # Dimension 0 numbers the observations; an episode has one more than steps.
    first = np.cumsum([0, *(store.lengths[:-1] + 1)])
    episodes = first.searchsorted(told.observations[:, -1, 0], side="right") - 1
    wanted = np.repeat(store.episode_returns[episodes, None], 4, axis=1)
    np.testing.assert_allclose(told.episode_returns, wanted, rtol=1e-6)
