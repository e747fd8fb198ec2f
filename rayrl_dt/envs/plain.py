"""The wrapper around every environment: arrays and numbers of the kinds that the rest of the package knows."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs.actions import ActionLayout
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.errors import UserError
from rayrl_dt.types import scalar_rewards

__all__ = ["PlainEnv"]


class PlainEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Flattens observations and actions as the data's were, and makes each reward a float.

    Args:
        env: any environment.
        flattening: of the data's observations; None for that of the environment's own space. An environment whose
            parts have other names, or that flattens by itself, keeps its own order.
    """

    def __init__(self, env: gym.Env[Any, Any], flattening: Flattening | None) -> None:
        super().__init__(env)
        if flattening is None or not flattening.reads(env.observation_space):
            flattening = Flattening(env.observation_space)
        self._flattening = None if flattening.plain else flattening
        self.observation_space = flattening.flat
        self._layout = _layout(env.action_space)
        if self._layout is not None:
            self.action_space = self._layout.flat

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The environment's own specification: this wrapper is no part of it."""
        return self.env.spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flat(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment."""
        taken = action if self._layout is None else self._layout.restore(action)
        observation, reward, terminated, truncated, info = self.env.step(taken)
        if not isinstance(reward, float | int):
            reward = float(scalar_rewards(np.asarray(reward), 1)[0])
        return self._flat(observation), reward, terminated, truncated, info

    def _flat(self, observation: Any) -> Any:
        return observation if self._flattening is None else self._flattening(observation)


def _layout(space: gym.Space[Any]) -> ActionLayout | None:
    """Return how actions are laid out; None where they stay as they are, also those that no policy can take."""
    layout = ActionLayout(space)
    try:
        return None if layout.plain else layout
    except UserError:
        return None
