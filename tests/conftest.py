"""Fixtures shared by all tests: no test reads or writes outside its own temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory


@pytest.fixture(autouse=True)
def data_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test empty data set and cache folders, and no way to download."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RAYRL_DT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def make_trajectories() -> Callable[..., list[Trajectory]]:
    """Returns a function that makes random episodes.

    Rewards are multiples of 1/8, so that sums are exact in float32. Dimension 0 of the observations numbers
    them through all episodes, so that a test can tell where a row comes from.
    """

    def make(
        *,
        lengths: tuple[int, ...] = (1, 2, 7, 30, 30),
        observation_dim: int = 3,
        action_dim: int = 2,
        actions: int | None = None,
        first_action: int = 0,
        seed: int = 0,
    ) -> list[Trajectory]:
        rng = np.random.default_rng(seed)
        trajectories = []
        count = 0
        for number, length in enumerate(lengths):
            observations = rng.normal(size=(length + 1, observation_dim)).astype(np.float32)
            observations[:, 0] = np.arange(count, count + length + 1)
            count += length + 1
            if actions is None:
                taken: Any = rng.uniform(-1, 1, (length, action_dim)).astype(np.float32)
            else:
                taken = first_action + rng.integers(actions, size=length)
            rewards = rng.integers(-8, 17, length).astype(np.float32) / 8
            trajectories.append(Trajectory(observations, taken, rewards, terminated=number % 2 == 0))
        return trajectories

    return make


@pytest.fixture
def make_store(make_trajectories: Callable[..., list[Trajectory]]) -> Callable[..., TrajectoryStore]:
    """Returns a function that makes a small random store; give `actions` for a discrete one.

    Keywords are those of `make_trajectories`.
    """

    def make(
        *, observation_dim: int = 3, action_dim: int = 2, actions: int | None = None, **options: Any
    ) -> Any:
        first = options.get("first_action", 0)
        action_space: gym.Space[Any] = gym.spaces.Box(-1, 1, (action_dim,), np.float32)
        if actions is not None:
            action_space = gym.spaces.Discrete(actions, start=first)
        info = DatasetInfo(
            source="test",
            observation_space=gym.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32),
            action_space=action_space,
        )
        trajectories = make_trajectories(
            observation_dim=observation_dim, action_dim=action_dim, actions=actions, **options
        )
        return TrajectoryStore.from_trajectories(trajectories, info)

    return make


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One small Ray for the tests of a module; `tests/algorithms` has a larger one."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    if mine:
        ray.shutdown()
