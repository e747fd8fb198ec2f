"""The fixed piece of work of the benchmarks: Hopper-sized data, and a config on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.seeding import numpy_generator
from rayrl_dt.types import Trajectory

__all__ = [
    "BATCH_SIZE",
    "CONTEXT_LENGTH",
    "ENV",
    "MODEL",
    "REPEATS",
    "ROLLOUT_SLOTS",
    "SEED",
    "Bench",
    "Progress",
    "make_store",
]

BATCH_SIZE = 64
CONTEXT_LENGTH = 20
OBSERVATION_SIZE = 11
ACTION_SIZE = 3
EPISODES = 100
EPISODE_STEPS = 500
ROLLOUT_SLOTS = (1, 8, 32)
ENV = "Hopper-v5"
SEED = 0
REPEATS = 5
MODEL: dict[str, Any] = {
    "context_length": CONTEXT_LENGTH,
    "embed_dim": 128,
    "num_layers": 3,
    "num_heads": 1,
    "dropout": 0.1,
    "max_episode_steps": 1000,
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
        store: the data, in memory.
        folder: the same data, on disk.
        model: `model_config` of what is trained and rolled out.
        seconds: wall time per figure.
        progress: told what is being measured.
    """

    store: TrajectoryStore
    folder: Path
    model: dict[str, Any]
    seconds: float
    progress: Progress | None

    def say(self, what: str) -> None:
        """Tell what is being measured."""
        if self.progress is not None:
            self.progress(what)

    def config(self) -> Any:
        """Return a config on the data, with no end to its training."""
        from rayrl_dt.algorithms.dt import DTConfig

        config = DTConfig()
        config.offline_data(dataset=f"store:{self.folder}")
        config.rl_module(model_config=self.model)
        config.training(
            gradient_steps=10**9, gradient_steps_per_iteration=10**9, train_batch_size_per_learner=BATCH_SIZE
        )
        config.environment(ENV)
        config.debugging(seed=SEED)
        return config

    def rates(self, step: Callable[[], int]) -> list[float]:
        """Call `step`, which returns how much it has done, for `seconds`; return the rate of each repeat."""
        found = []
        for _ in range(REPEATS):
            done = 0
            begin = time.perf_counter()
            while (passed := time.perf_counter() - begin) < self.seconds / REPEATS or done == 0:
                done += step()
            found.append(done / passed)
        return found


def make_store() -> TrajectoryStore:
    """Draw random data in Hopper's shapes."""
    rng = numpy_generator(SEED, "bench-data")
    info = DatasetInfo(
        source="bench",
        observation_space=gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float64),
        action_space=gym.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32),
    )
    episodes = (
        Trajectory(
            observations=rng.standard_normal((EPISODE_STEPS + 1, OBSERVATION_SIZE), np.float32),
            actions=rng.uniform(-1, 1, (EPISODE_STEPS, ACTION_SIZE)).astype(np.float32),
            rewards=rng.uniform(0, 3, EPISODE_STEPS).astype(np.float32),
            terminated=True,
        )
        for _ in range(EPISODES)
    )
    return TrajectoryStore.from_trajectories(episodes, info)
