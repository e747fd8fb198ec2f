"""Environments of a user: nobody's packages know them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Walk(gym.Env[Any, Any]):
    """A walk on a line that pays where it is, times a size; it never ends by itself."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, size: float = 1.0) -> None:
        self.size = size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-1, 1))
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.place += float(action[0])
        return self._observation(), self.size * self.place, False, False, {}

    def _observation(self) -> Any:
        return np.array([self.place, self.size], np.float32)


gym.register("Corridor-v0", entry_point=f"{__name__}:Walk", max_episode_steps=9, kwargs={"size": 3.0})
