"""Small data sets of images that are all different."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory


def image_store(
    shape: tuple[int, ...] = (40, 40), *, lengths: tuple[int, ...] = (7, 9, 5), actions: int = 3
) -> TrajectoryStore:
    """Episodes of the given lengths, with random images and discrete actions."""
    rng = np.random.default_rng(0)
    episodes = [
        Trajectory(
            rng.integers(1, 256, (length + 1, *shape), np.uint8),
            rng.integers(actions, size=length),
            rng.normal(size=length).astype(np.float32),
            terminated=True,
        )
        for length in lengths
    ]
    info = DatasetInfo("images", gym.spaces.Box(0, 255, shape, np.uint8), gym.spaces.Discrete(actions))
    return TrajectoryStore.from_trajectories(episodes, info)
