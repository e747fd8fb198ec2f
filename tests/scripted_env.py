"""An environment whose every observation and reward says where it comes from."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np


class ScriptedEnv(gym.Env[np.ndarray[Any, Any], Any]):
    """Episodes of given lengths, one after the other; odd ones are cut, even ones terminate.

    The observation is (identity of the environment, episode, step), the reward a function of the three that
    float32 holds exactly.

    Attributes:
        actions_taken: for each episode so far, the actions it was stepped with.
        resets: number of resets, and `seeds` the seeds that came with them.
    """

    def __init__(
        self,
        identity: int,
        lengths: tuple[int, ...],
        *,
        actions: int | None = None,
        poison: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        if actions is not None:
            self.action_space = gym.spaces.Discrete(actions, start=2)
        self.identity, self.lengths, self.poison = identity, lengths, poison or {}
        self.episode, self.time = -1, 0
        self.actions_taken: list[list[Any]] = []
        self.seeds: list[int | None] = []

    def _observation(self) -> np.ndarray[Any, Any]:
        values = np.array([self.identity, self.episode, self.time], np.float32)
        return values * np.nan if self.poison.get("observation") == (self.episode, self.time) else values

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode += 1
        self.time = 0
        self.actions_taken.append([])
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        self.actions_taken[-1].append(np.array(action))
        self.time += 1
        over = self.time == self.lengths[self.episode % len(self.lengths)]
        reward = reward_of(self.identity, self.episode, self.time - 1)
        if self.poison.get("reward") == (self.episode, self.time):
            reward = float("nan")
        return self._observation(), reward, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}


def reward_of(identity: int, episode: int, step: int) -> float:
    """The reward for the action at `step`."""
    return 64.0 * identity + 4.0 * (episode % 8) + 0.125 * step + 0.125


def scripted_vector(
    *lengths: tuple[int, ...], autoreset: gym.vector.AutoresetMode | None = None, **options: Any
) -> gym.vector.SyncVectorEnv:
    """A vector of scripted environments, number i with `lengths[i]`."""
    mode = gym.vector.AutoresetMode.NEXT_STEP if autoreset is None else autoreset
    makers = [partial(ScriptedEnv, i, each, **options) for i, each in enumerate(lengths)]
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)
