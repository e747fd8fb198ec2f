"""The wrapper around every environment: arrays and numbers of the kinds that the rest of the package knows."""

from __future__ import annotations

import logging
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs.actions import ActionLayout
from rayrl_dt.envs.observations import Flattening, as_bytes
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.types import as_array, scalar_rewards

__all__ = ["PlainEnv"]

_LOG = logging.getLogger(__name__)


class PlainEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Flattens observations and actions as the data's were, and makes each reward a float.

    Args:
        env: any environment.
        flattening: of the data's observations; None for that of the environment's own space. An environment whose
            parts have other names, or that flattens by itself, keeps its own order.
    """

    def __init__(self, env: gym.Env[Any, Any], flattening: Flattening | None) -> None:
        super().__init__(env)
        for name in ("observation_space", "action_space"):
            if getattr(env, name, None) is None:
                raise UserError(
                    f"environment {type(env.unwrapped).__name__} has no {name}; set it in its class or in __init__"
                )
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
        return self._flat(observation), _info(info)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment."""
        taken = action if self._layout is None else self._layout.restore(action)
        observation, reward, terminated, truncated, info = self.env.step(taken)
        if not isinstance(reward, float | int):
            reward = _number(reward)
        ends = _truth("terminated", terminated), _truth("truncated", truncated)
        return self._flat(observation), reward, *ends, _info(info)

    def close(self) -> None:
        """Close the environment; one that cannot be closed has done its work all the same."""
        try:
            self.env.close()
        except Exception as error:  # anybody's code
            _LOG.warning("An environment could not be closed: %s", one_line(error))

    def _flat(self, observation: Any) -> Any:
        if self._flattening is not None:
            return self._flattening(observation)
        space = self.observation_space
        if isinstance(space, gym.spaces.Box) and np.shape(observation) != space.shape:
            raise TypeError(
                f"an observation of shape {np.shape(observation)}, where its space has {space.shape}"
            )
        return as_bytes(as_array(observation)) if space.dtype == np.uint8 else observation


def _truth(name: str, value: Any) -> bool:
    """Return whether an episode has ended, also from arrays of one number."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biu":
        raise TypeError(f"{name} is {value!r}, and must be true or false")
    return bool(array.item())


def _number(reward: Any) -> float:
    try:
        return float(scalar_rewards(np.asarray(reward), 1)[0])
    except UserError as error:
        raise TypeError(f"a reward is {reward!r}, and must be a number") from error


def _info(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise TypeError(f"info is {value!r}, and must be a dictionary")


def _layout(space: gym.Space[Any]) -> ActionLayout | None:
    """Return how actions are laid out; None where they stay as they are, also those that no policy can take."""
    layout = ActionLayout(space)
    try:
        return None if layout.plain else layout
    except UserError:
        return None
