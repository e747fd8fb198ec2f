"""Training on observations and actions of many spaces, with evaluations in the environment they came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt import SequencePolicy
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs.actions import ActionLayout
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.types import Trajectory

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SPACES: dict[str, tuple[gym.Space[Any], gym.Space[Any]]] = {
    "Cells": (gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([2, 3], start=[1, 0])),
    "Goals": (
        gym.spaces.Dict({"say": gym.spaces.Text(3), "at": gym.spaces.Box(-1, 1, (2, 2))}),
        gym.spaces.Box(-1, 1, (2,)),
    ),
    "Buttons": (gym.spaces.Box(-1, 1, (3,)), gym.spaces.MultiBinary(3)),
    "Grip": (gym.spaces.Box(-1, 1, (3,), np.float64), gym.spaces.Box(-2, 1, (2, 2), np.float64)),
}


class _Env(gym.Env[Any, Any]):
    def __init__(self) -> None:
        self.observation_space, self.action_space = SPACES[type(self).__name__]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), np.array([1.0]), False, self.steps == 5, {}


class Cells(_Env):
    """A number is seen, and two choices are taken."""


class Goals(_Env):
    """A matrix is seen beside a text."""


class Buttons(_Env):
    """Each of three buttons is pressed or not."""


class Grip(_Env):
    """Actions are matrices."""


@pytest.mark.parametrize("env", [Cells, Goals, Buttons, Grip])
def test_every_space_is_trained_and_evaluated(
    tiny: Callable[..., Any], tmp_path: Path, env: type[_Env]
) -> None:
    made = env()
    flattening, layout = Flattening(made.observation_space), ActionLayout(made.action_space)
    episodes = []
    for seed in range(4):
        made.action_space.seed(seed)
        observations = [made.reset(seed=seed)[0]]
        actions = [made.action_space.sample() for _ in range(5)]
        observations += [made.step(action)[0] for action in actions]
        episodes.append(
            Trajectory(
                np.stack(list(map(flattening, observations))), layout.episode(actions), np.ones((5, 1)), False
            )
        )
    info = DatasetInfo(
        "spaces",
        flattening.flat,
        layout.flat,
        recorded_space=made.observation_space,
        recorded_actions=made.action_space,
    )
    source = f"store:{TrajectoryStore.from_trajectories(episodes, info).save(tmp_path / 'data')}"
    config = tiny(source, steps=4).environment(f"{__name__}:{env.__name__}").evaluation(target_returns="5")
    algo = config.build_algo()
    try:
        algo.train()
        result = algo.evaluate()
        assert result
        model = algo.get_module().model
    finally:
        algo.stop()
    policy = SequencePolicy(model)
    policy.reset(5.0)
    observation, _ = made.reset(seed=1)
    action = policy.act(observation)
    observation, reward, *_ = made.step(action)
    policy.act(observation, reward)
