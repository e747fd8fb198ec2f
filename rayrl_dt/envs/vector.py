"""Several copies of an environment behind Gymnasium's vector interface, and whether they are a policy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs.actions import same_choices
from rayrl_dt.envs.native_games import NATIVE, NativeGames
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError

__all__ = ["check_spaces", "rest", "vectorize"]

Space = gym.Space[Any]


def vectorize(
    maker: Callable[[], gym.Env[Any, Any]],
    num_envs: int,
    *,
    mode: Literal["sync", "async", "vector_entry_point"] = "sync",
    native: Callable[[], EnvSpec] | None = None,
    autoreset: gym.vector.AutoresetMode = gym.vector.AutoresetMode.NEXT_STEP,
    spaces: tuple[Space, Space] | None = None,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make `num_envs` copies of an environment.

    Args:
        maker: makes one.
        num_envs: how many.
        mode: step them in turn, each in a process of its own (for slow environments), or Atari games in threads
            (`rayrl_dt.envs.native_games`).
        native: says what the threads are to play; None where that is not known.
        autoreset: what happens at an episode's end.
        spaces: observation and action space that a policy expects of it; None for any.

    Raises:
        UserError: it cannot be made, or its spaces are not the expected ones.
    """
    makers = [maker] * num_envs
    vector: gym.vector.VectorEnv[Any, Any, Any]
    if mode == NATIVE:
        if native is None:
            raise UserError(
                f"env_runners.gym_env_vectorize_mode {NATIVE} plays Atari games by their names, and this environment "
                "is registered with Ray; set gym_env_vectorize_mode: sync"
            )
        vector = NativeGames(native(), num_envs)
    elif mode == "async":
        vector = gym.vector.AsyncVectorEnv(makers, autoreset_mode=autoreset)
    else:
        vector = _RestingVectorEnv(makers, autoreset_mode=autoreset)
    if spaces is not None:
        try:
            check_spaces(vector.single_observation_space, vector.single_action_space, *spaces)
        except UserError:
            vector.close()
            raise
    return vector


def rest(vector: gym.vector.VectorEnv[Any, Any, Any], slot: int) -> None:
    """Have a slot take no steps until the next reset, where it would step in turn with the others."""
    if isinstance(vector, _RestingVectorEnv):
        vector.rest(slot)


class _Still(gym.Wrapper[Any, Any, Any, Any]):
    """Stands in for an environment that nobody asks for anything: it repeats its last observation."""

    def __init__(self, env: gym.Env[Any, Any], observation: Any) -> None:
        super().__init__(env)
        self._observation = observation

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        return self._observation, 0.0, False, False, {}

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self._observation, {}


class _RestingVectorEnv(gym.vector.SyncVectorEnv):
    """Environments in turn, of which some may rest."""

    def rest(self, slot: int) -> None:
        """Step an environment no more until the next reset."""
        if not isinstance(self.envs[slot], _Still):
            self.envs[slot] = _Still(self.envs[slot], self._env_obs[slot])

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Wake and reset all of them."""
        self.envs = [each.env if isinstance(each, _Still) else each for each in self.envs]
        return super().reset(**options)


def check_spaces(
    env_observation: Space, env_action: Space, data_observation: Space, data_action: Space
) -> None:
    """Check that a policy learned from the data fits the environment.

    Number types may differ, and so may the bounds of observations; composite observations are compared
    flattened. The bounds of actions must agree, because they scale the policy's output.

    Raises:
        UserError: a space differs.
    """
    _check_space("observations", _flat(env_observation), _flat(data_observation))
    _check_space("actions", env_action, data_action)


def _check_space(what: str, env: Space, data: Space) -> None:
    same: bool
    packs = isinstance(env, Packed) or isinstance(data, Packed)
    if isinstance(env, gym.spaces.Box) and isinstance(data, gym.spaces.Box) and not packs:
        same = env.shape == data.shape
        if same and what == "actions":
            same = np.allclose(env.low, data.low, atol=1e-5) and np.allclose(env.high, data.high, atol=1e-5)
    else:
        same = same_choices(env, data)
    if not same:
        raise UserError(
            f"the environment's {what} are {env}, the data set's are {data}; choose the environment that the "
            "data was collected in (leave environment.env out to recover it), or another data set"
        )


def _flat(space: Space) -> Space:
    return Flattening(space, kept=isinstance(space, gym.spaces.Box)).flat
