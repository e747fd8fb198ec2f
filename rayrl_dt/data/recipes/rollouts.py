"""Runs scripted behavior in real environments, a few episodes side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt import envs, seeding
from rayrl_dt.data.recipes.behavior import Controller, GradedBehavior
from rayrl_dt.types import RawEpisode

__all__ = ["Progress", "graded_episodes"]

Progress = Callable[[int, int], None]
"""Called with (episodes done, episodes in all)."""

_SLOTS = 16


def graded_episodes(
    env_id: str,
    controller: Callable[[gym.Env[Any, Any]], Controller],
    *,
    episodes: int,
    seed: int,
    progress: Progress | None = None,
    **behavior: float,
) -> Iterator[RawEpisode]:
    """Yield episodes of a graded controller in an environment whose episodes all end by their time limit.

    Args:
        env_id: a registered environment.
        controller: makes the clean controller for (an instance of) the environment; it sees observations
            flattened.
        episodes: how many.
        seed: of resets and behavior; episode i is the same however many there are.
        progress: called after each batch of episodes.
        behavior: options of `GradedBehavior`.
    """
    slots = [envs.make(env_id) for _ in range(min(_SLOTS, episodes))]
    space = slots[0].unwrapped.observation_space
    control = controller(slots[0])
    try:
        for begin in range(0, episodes, _SLOTS):
            numbers = np.arange(begin, min(begin + _SLOTS, episodes))
            yield from _batch(slots[: len(numbers)], space, control, numbers, seed, behavior)
            if progress is not None:
                progress(begin + len(numbers), episodes)
    finally:
        for env in slots:
            env.close()


def _batch(
    slots: list[gym.Env[Any, Any]],
    space: gym.Space[Any],
    controller: Controller,
    numbers: np.ndarray[Any, Any],
    seed: int,
    options: dict[str, float],
) -> Iterator[RawEpisode]:
    seeds = [seeding.derive_seed(seed, "recipe/reset", int(number)) % 2**31 for number in numbers]
    now = np.stack([env.reset(seed=s)[0] for env, s in zip(slots, seeds, strict=True)])
    action_space = slots[0].action_space
    assert isinstance(action_space, gym.spaces.Box)
    rng = seeding.numpy_generator(seed, "recipe/behavior", int(numbers[0]))
    behavior = GradedBehavior(controller, action_space, numbers, rng, **options)
    observations, actions, rewards = [now], [], []
    over = False
    while not over:
        action = behavior.act(now)
        steps = [env.step(a) for env, a in zip(slots, action, strict=True)]
        now = np.stack([step[0] for step in steps])
        over = any(step[2] or step[3] for step in steps)
        if over and not all(step[3] and not step[2] for step in steps):
            raise AssertionError("graded_episodes needs episodes that end together, by their time limit")
        observations.append(now)
        actions.append(action)
        rewards.append([step[1] for step in steps])
    all_observations = np.stack(observations, axis=1).astype(np.float32)
    all_actions = np.stack(actions, axis=1)
    all_rewards = np.array(rewards, np.float32).T
    for i, reset_seed in enumerate(seeds):
        yield RawEpisode(
            observations=_unflatten(space, all_observations[i]),
            actions=all_actions[i],
            rewards=all_rewards[i],
            terminated=False,
            seed=reset_seed,
        )


def _unflatten(space: gym.Space[Any], values: np.ndarray[Any, Any]) -> Any:
    """Split flattened observations `(T+1, D)` into the parts of a Dict space."""
    if not isinstance(space, gym.spaces.Dict):
        return values
    ends = np.cumsum([gym.spaces.flatdim(part) for part in space.spaces.values()])
    parts = np.split(values, ends[:-1], axis=1)
    return dict(zip(space.spaces, parts, strict=True))
