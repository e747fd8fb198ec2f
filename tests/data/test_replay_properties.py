"""The replay against a plain list: whatever is added, saved and loaded, both hold the same episodes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rayrl_dt.data import windows
from rayrl_dt.data.replay import ReplayCounts, TrajectoryReplay
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.types import Normalizer, Trajectory

INFO = DatasetInfo("test", gym.spaces.Box(-9, 9, (2,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32))
ADD, SAVE = st.lists(st.integers(1, 40), min_size=1, max_size=4), st.none()


def episode(number: int, length: int) -> Trajectory:
    rng = np.random.default_rng(number)
    return Trajectory(
        rng.normal(size=(length + 1, 2)).astype(np.float32),
        rng.uniform(-1, 1, (length, 1)).astype(np.float32),
        # Multiples of 1/8: their sums are exact.
        (rng.integers(-16, 17, length) / 8).astype(np.float32),
        terminated=bool(rng.integers(2)),
    )


class Model:
    """What a replay is: a list, of which the head leaves."""

    def __init__(self, capacity: int, capacity_steps: int | None) -> None:
        self.capacity, self.capacity_steps = capacity, capacity_steps
        self.held: list[tuple[int, Trajectory]] = []
        self.added: list[Trajectory] = []

    def add(self, one: Trajectory) -> None:
        self.held.append((len(self.added), one))
        self.added.append(one)
        limit = self.capacity_steps
        while len(self.held) > self.capacity or (limit and self.steps > limit and len(self.held) > 1):
            del self.held[0]

    @property
    def steps(self) -> int:
        return sum(len(one) for _, one in self.held)

    @property
    def counts(self) -> ReplayCounts:
        steps = sum(len(one) for one in self.added)
        return ReplayCounts(len(self.added), steps, len(self.added) - len(self.held), steps - self.steps)


def assert_equal(replay: TrajectoryReplay, model: Model) -> None:
    assert len(replay) == len(model.held) and replay.num_steps == model.steps
    assert replay.counts == model.counts
    if not model.held:
        with pytest.raises(UserError, match="empty"):
            _ = replay.store
        return
    assert replay.numbers().tolist() == [number for number, _ in model.held]
    for i, (_, one) in enumerate(model.held):
        found = replay.store.trajectory(i)
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(found, name), getattr(one, name))
        assert found.terminated == one.terminated
        begin = int(replay.store.starts[i])
        wanted = np.cumsum(one.rewards[::-1])[::-1]
        np.testing.assert_array_equal(replay.store.returns_to_go[begin : begin + len(one)], wanted)


@settings(max_examples=25, deadline=None)
@given(
    capacity=st.integers(1, 6),
    capacity_steps=st.none() | st.integers(1, 90),
    mapped=st.booleans(),
    logged=st.lists(st.integers(1, 30), max_size=8),
    does=st.lists(ADD | SAVE, max_size=8),
)
def test_it_holds_what_a_list_would(
    capacity: int, capacity_steps: int | None, mapped: bool, logged: list[int], does: list[Any]
) -> None:
    def new() -> TrajectoryReplay:
        return TrajectoryReplay(
            INFO,
            Normalizer.identity((2,)),
            capacity=capacity,
            capacity_steps=capacity_steps,
            memory_bytes=0 if mapped else None,
        )

    replay, model = new(), Model(capacity, capacity_steps)
    if logged:
        store = TrajectoryStore.from_trajectories(
            [episode(-1 - i + 99, n) for i, n in enumerate(logged)], INFO
        )
        replay.fill(store)
        # The best that fit, from the lowest return upwards.
        best = sorted(range(len(logged)), key=lambda i: store.episode_returns[i])[-capacity:]
        while capacity_steps and len(best) > 1 and sum(logged[i] for i in best) > capacity_steps:
            del best[0]
        for i in best:
            model.add(store.trajectory(i))
    for action in does:
        if action is None:
            with tempfile.TemporaryDirectory() as folder:
                replay.save(Path(folder) / "replay.npz")
                replay = new()
                replay.load(Path(folder) / "replay.npz")
        else:
            fresh = [episode(len(model.added) + i, length) for i, length in enumerate(action)]
            replay.add(fresh)
            for one in fresh:
                model.add(one)
        assert_equal(replay, model)
    if model.held:
        rng = (np.random.default_rng(0) for _ in range(2))
        plain = TrajectoryStore.from_trajectories([one for _, one in model.held], INFO)
        one, other = (windows.sample(where, next(rng), 4, 3) for where in (replay.store, plain))
        for name in ("observations", "actions", "returns_to_go", "timesteps", "mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
