"""CartPole-v1 balanced by a linear controller, at graded skill."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rayrl_dt import envs, seeding
from rayrl_dt.data.recipes.behavior import CLEAN, RANDOM, kind_of
from rayrl_dt.data.recipes.rollouts import Progress
from rayrl_dt.types import RawEpisode

__all__ = ["balance", "play"]

Array = np.ndarray[Any, Any]

_WEIGHTS = np.array([0.1, 0.2, 1.0, 0.4])
"""Of position, speed, angle and angular speed: the cart is driven under the pole, and back to the middle."""


def balance(observation: Array) -> int:
    """Return the push, 0 for left and 1 for right, that keeps the pole up."""
    return int(observation @ _WEIGHTS > 0)


def play(*, episodes: int, seed: int, progress: Progress | None = None) -> Iterator[RawEpisode]:
    """Yield episodes; in a graded one each step is random with a probability of its own, from 0.2 to 1."""
    env = envs.make("CartPole-v1")
    try:
        for number in range(episodes):
            rng = seeding.numpy_generator(seed, "recipe/behavior", number)
            kind = int(kind_of(np.array(number)))
            noise = {RANDOM: 1.0, CLEAN: 0.0}.get(kind, rng.uniform(0.2, 1.0))
            reset_seed = seeding.derive_seed(seed, "recipe/reset", number) % 2**31
            observations, actions, rewards = [env.reset(seed=reset_seed)[0]], [], []
            terminated = truncated = False
            while not (terminated or truncated):
                random = rng.random() < noise
                actions.append(int(rng.integers(2)) if random else balance(observations[-1]))
                observation, reward, terminated, truncated, _ = env.step(actions[-1])
                observations.append(observation)
                rewards.append(reward)
            yield RawEpisode(
                observations=np.stack(observations),
                actions=np.array(actions),
                rewards=np.array(rewards, np.float32),
                terminated=terminated,
                seed=reset_seed,
            )
            if progress is not None:
                progress(number + 1, episodes)
    finally:
        env.close()
