"""The recipes whose behavior is scripted. Each function writes one data set and returns its id."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt import envs, seeding
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.recipes import cart_pole, pendulum, point_maze, reacher
from rayrl_dt.data.recipes.behavior import CLEAN, RANDOM, kind_of
from rayrl_dt.data.recipes.rollouts import Progress, graded_episodes
from rayrl_dt.types import RawEpisode

__all__ = ["AUTHOR", "as_float32", "graded", "key_to_door", "random_walks", "requirements"]

AUTHOR = "rayrl_dt"
_GRADED = (
    "Every tenth episode is uniformly random, every tenth the clean controller; the others are the "
    "controller degraded to a skill drawn per episode. ref_min_score and ref_max_score are the mean returns "
    "of this data set's random and clean episodes."
)


def requirements(*packages: str) -> list[str]:
    """Return pip requirements that pin the installed versions."""
    return [f"{package}=={importlib.metadata.version(package)}" for package in packages]


_Behavior = tuple[str, Callable[..., Iterator[RawEpisode]], tuple[str, ...]]


def _maze(env_id: str) -> _Behavior:
    def controller(env: Any) -> point_maze.WayPoints:
        return point_maze.WayPoints(env.unwrapped.maze.maze_map)

    play = partial(graded_episodes, env_id, controller, hold=20, skill_power=1.5, least_authority=0.1)
    return "way-points", play, ("gymnasium", "gymnasium-robotics", "mujoco")


_BEHAVIORS: dict[str, _Behavior] = {
    "CartPole-v1": ("linear balancing", cart_pole.play, ("gymnasium",)),
    "Pendulum-v1": ("energy swing-up", pendulum.play, ("gymnasium",)),
    "Reacher-v5": (
        "Jacobian transpose",
        partial(graded_episodes, "Reacher-v5", lambda env: reacher.jacobian_transpose, least_authority=0.1),
        ("gymnasium", "mujoco"),
    ),
    "PointMaze_UMaze-v3": _maze("PointMaze_UMaze-v3"),
    "PointMaze_Medium-v3": _maze("PointMaze_Medium-v3"),
}
"""What acts in an environment with graded skill: the controller's name, its episodes, the packages they need."""


def graded(
    *, dataset_id: str, seed: int, episodes: int, overwrite: bool, progress: Progress | None, env_id: str
) -> str:
    """Write episodes of graded skill in one of the environments that have a controller."""
    controller, play, packages = _BEHAVIORS[env_id]
    made = list(play(episodes=episodes, seed=seed, progress=progress))
    env = envs.make(env_id).unwrapped
    returns = np.array([np.sum(episode.rewards, dtype=np.float64) for episode in made])
    kinds = kind_of(np.arange(len(made)))
    # One episode is random, with two one is clean.
    low, high = returns[kinds == RANDOM].mean(), returns[kinds == CLEAN].mean() if len(made) > 1 else None
    try:
        return minari_io.write(
            dataset_id,
            made,
            observation_space=as_float32(env.observation_space),
            action_space=env.action_space,
            env_spec=env_id,
            author=AUTHOR,
            algorithm_name=f"{controller} controller of graded skill",
            description=f"{env_id}, {len(made)} whole episodes. {_GRADED}",
            requirements=requirements(*packages),
            ref_min_score=None if high is None else low,
            ref_max_score=high,
            seed=seed,
            overwrite=overwrite,
        )
    finally:
        env.close()


def key_to_door(
    *, dataset_id: str, seed: int, episodes: int, overwrite: bool, progress: Progress | None
) -> str:
    """Key-to-Door, uniformly random walks."""
    env = envs.KeyToDoor()
    return minari_io.write(
        dataset_id,
        random_walks(env, seed, episodes, progress),
        observation_space=env.observation_space,
        action_space=env.action_space,
        env_spec="rayrl_dt/KeyToDoor-v0",
        author=AUTHOR,
        algorithm_name="uniformly random",
        description=(
            "Uniformly random walks in Key-to-Door, all episodes from the key room on. ref_min_score is the "
            "exact success probability of a random walk, ref_max_score that of an optimal policy."
        ),
        requirements=requirements("gymnasium", "rayrl_dt"),
        ref_min_score=float(envs.key_to_door.success_probability()),
        ref_max_score=1.0,
        seed=seed,
        overwrite=overwrite,
    )


def random_walks(
    env: envs.KeyToDoor, seed: int, episodes: int, progress: Progress | None
) -> Iterator[RawEpisode]:
    """Yield uniformly random episodes; episode i is the same however many there are."""
    longest = sum(env.room_steps)
    for number in range(episodes):
        reset_seed = seeding.derive_seed(seed, "recipe/reset", number) % 2**31
        walk = seeding.numpy_generator(seed, "recipe/behavior", number).integers(4, size=longest)
        observations = [env.reset(seed=reset_seed)[0]]
        rewards: list[float] = []
        over = False
        while not over:
            observation, reward, over, _, _ = env.step(walk[len(rewards)])
            observations.append(observation)
            rewards.append(reward)
        yield RawEpisode(
            observations=np.stack(observations),
            actions=walk[: len(rewards)],
            rewards=np.array(rewards, np.float32),
            terminated=True,
            seed=reset_seed,
        )
        if progress is not None:
            progress(number + 1, episodes)


def as_float32(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space with 32-bit numbers: what is written, and all that models read."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({key: as_float32(part) for key, part in space.items()})
    assert isinstance(space, gym.spaces.Box)
    return gym.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
