"""An environment as nobody should write one, and some do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

WAYS: dict[str, tuple[str, ...]] = {
    "init": ("raises",),
    "reset": ("raises", "old", "nan", "shape", "none", "text", "no seed", "scalar"),
    "step": ("raises", "old", "nan", "shape", "none", "text", "scalar", "three"),
    "reward": ("nan", "array", "none", "text", "infinite", "pair"),
    "end": ("none", "text", "array", "never"),
    "info": ("none", "list"),
    "close": ("raises",),
}
"""What goes wrong where."""


class Odd(gym.Env[Any, Any]):
    """Has Pendulum's spaces, and episodes of ten steps.

    Args:
        at: where it is odd, a key of `WAYS`.
        way: how.
        after: in which step.
    """

    observation_space = gym.spaces.Box(-9, 9, (3,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, at: str = "", way: str = "", after: int = 0) -> None:
        self.at, self.way, self.after, self.steps = at, way, after, 0
        if self.at == "init":
            raise JointLost("elbow", 7.5)

    def reset(self, **options: Any) -> Any:
        if self._odd("reset", "no seed") and "seed" in options:
            raise TypeError("Odd.reset() got an unexpected keyword argument 'seed'")
        super().reset(seed=options.get("seed"))
        self.steps = 0
        observation = self._observation("reset")
        return observation if self._odd("reset", "old") else (observation, self._info())

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation = self._observation("step")
        reward = self._value("reward", 1.0)
        ended = self._value("end", self.steps >= 10 and not self._odd("end", "never"))
        if self._odd("step", "old"):
            return observation, reward, ended, self._info()
        return (
            (observation, reward, ended)
            if self._odd("step", "three")
            else (
                observation,
                reward,
                False,
                ended,
                self._info(),
            )
        )

    def close(self) -> None:
        if self.at == "close":
            raise JointLost("wrist", 1.0)

    def _odd(self, at: str, way: str) -> bool:
        return (self.at, self.way) == (at, way) and self.steps >= self.after

    def _observation(self, at: str) -> Any:
        if self._odd(at, "raises"):
            raise JointLost("knee", 2.5)
        return self._value(at, self.np_random.normal(size=3).astype(np.float32))

    def _info(self) -> Any:
        return self._value("info", {})

    def _value(self, at: str, usual: Any) -> Any:
        values = {
            "nan": np.full(3, np.nan, np.float32) if at in ("reset", "step") else float("nan"),
            "infinite": float("inf"),
            "shape": np.zeros((2, 2), np.float32),
            "scalar": 0.5,
            "none": None,
            "text": "much",
            "array": np.array([usual]),
            "pair": np.array([1.0, 2.0]),
            "list": [1],
        }
        chosen = at == self.at and self.steps >= self.after and self.way in values
        return values[self.way] if chosen else usual


class JointLost(Exception):
    """One that cannot be unpickled: it takes more than what it says."""

    def __init__(self, joint: str, force: float) -> None:
        super().__init__(f"the {joint}\ncame off at {force} N")
