"""The kinds of environment that a data set may have been recorded in, or a config may name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import NormalizeReward, RescaleAction, TimeLimit
from own_envs import Walk

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.types import Trajectory

Maker = Callable[[], gym.Env[Any, Any]]


def pendulum(limit: int | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", max_episode_steps=limit, disable_env_checker=True, **kwargs)


def ours(limit: int | None, **kwargs: Any) -> gym.Env[Any, Any]:
    spec = EnvSpec("Walk-v0", entry_point="own_envs:Walk", kwargs=kwargs, max_episode_steps=limit)
    return gym.make(spec, disable_env_checker=True)


def pong() -> gym.Env[Any, Any]:
    pytest.importorskip("ale_py")
    import ale_py

    gym.register_envs(ale_py)
    options = {"obs_type": "ram", "frameskip": 3, "max_episode_steps": 12}
    return gym.make("ALE/Pong-v5", disable_env_checker=True, **options)


def maze() -> gym.Env[Any, Any]:
    gym.register_envs(pytest.importorskip("gymnasium_robotics"))
    options = {"maze_map": [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], "max_episode_steps": 6}
    return gym.make("PointMaze_UMaze-v3", disable_env_checker=True, **options)


@dataclass(frozen=True)
class Kind:
    """A kind of environment.

    Attributes:
        makes: what runners are to collect in; data are recorded there.
        evaluation: what policies are to be evaluated in, if it is another.
        records: what the data say of it; None for what `makes` makes.
        nothing: the data say nothing.
        section: `environment` of the config file.
        known: whether its code is trusted unasked.
    """

    makes: Maker
    evaluation: Maker | None = None
    records: Callable[[], EnvSpec] | None = None
    nothing: bool = False
    section: dict[str, Any] = field(default_factory=dict)
    known: bool = True


WITH_RAY = "registered with Ray"
KINDS: dict[str, Kind] = {
    "limit": Kind(lambda: pendulum(7)),
    "arguments": Kind(lambda: pendulum(g=4.0)),
    "wrapper": Kind(lambda: RescaleAction(pendulum(9), -1.0, 1.0)),
    "reward wrapper": Kind(lambda: NormalizeReward(pendulum(), gamma=0.5)),
    "evaluation environment": Kind(
        lambda: pendulum(7), evaluation=lambda: RescaleAction(pendulum(11, g=3.0), -2, 2)
    ),
    "other arguments": Kind(
        lambda: pendulum(4, g=6.0),
        records=lambda: pendulum(7, g=4.0).spec,
        section={"env_config": {"max_episode_steps": 4, "g": 6.0}},
    ),
    "unregistered": Kind(lambda: ours(6, size=3.0), section={"trust_environment": True}, known=False),
    "module and id": Kind(
        lambda: ours(9, size=3.0), nothing=True, section={"env": "own_envs:Corridor-v0"}, known=False
    ),
    "module and class": Kind(
        lambda: ours(5, size=4.0),
        nothing=True,
        section={"env": "own_envs:Walk", "env_config": {"size": 4.0, "max_episode_steps": 5}},
        known=False,
    ),
    "class": Kind(lambda: ours(None), nothing=True, section={"env": Walk}, known=False),
    "a script's own": Kind(
        lambda: ours(8, size=2.0), nothing=True, section={"env": "Script-v0"}, known=False
    ),
    WITH_RAY: Kind(
        lambda: TimeLimit(Walk(2.0), 8),
        nothing=True,
        section={"env": "ray-walk", "env_config": {"size": 2.0}},
        known=False,
    ),
    "Atari": Kind(pong),
    "robotics": Kind(maze),
    "none": Kind(pendulum, nothing=True),
    "not here": Kind(pendulum, records=lambda: EnvSpec("Lost-v0", entry_point="no_such_package:Lost")),
}
ROLLED = [name for name in KINDS if name not in ("none", "not here")]


def record(kind: Kind, folder: Path) -> str:
    """Save a few random episodes; return their source."""
    env, episodes = kind.makes(), []
    flattening = Flattening(env.observation_space)
    for seed in range(2):
        env.action_space.seed(seed)
        observations, actions = [flattening(env.reset(seed=seed)[0])], []
        for _ in range(3):
            actions.append(env.action_space.sample())
            observations.append(flattening(env.step(actions[-1])[0]))
        episodes.append(
            Trajectory(np.stack(observations), np.stack(actions), np.arange(3, dtype=np.float32), False)
        )
    spec = kind.records() if kind.records else env.spec
    info = DatasetInfo(
        f"store:{folder}",
        flattening.flat,
        env.action_space,
        env_spec=None if kind.nothing else spec,
        recorded_space=env.observation_space,
        evaluation_spec=None if kind.evaluation is None else kind.evaluation().spec,
    )
    env.close()
    return f"store:{TrajectoryStore.from_trajectories(episodes, info).save(folder)}"
