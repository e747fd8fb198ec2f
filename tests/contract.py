"""What the contract runs in: an environment of short episodes for each kind of observation and action, and its data.

A step is rewarded by how near the action is to what the observation asks for, so that every kind can be learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.data.windows import gather
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.models.heads import HEADS
from rayrl_dt.types import Trajectory

STEPS = 12
"""Length of an episode; every third terminates a step early."""

OBSERVATIONS: dict[str, gym.Space[Any]] = {
    "vector": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "discrete": gym.spaces.Discrete(5),
    "image": gym.spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "frame": gym.spaces.Box(0, 255, (40, 40), np.uint8),  # stacked by the model
    "mixed": gym.spaces.Dict(
        {"eye": gym.spaces.Box(0, 255, (3, 36, 36), np.uint8), "at": gym.spaces.Box(-1, 1, (2,), np.float32)}
    ),
}
ACTIONS: dict[str, gym.Space[Any]] = {
    "box": gym.spaces.Box(-2.0, 2.0, (2,), np.float32),
    "discrete": gym.spaces.Discrete(3, start=1),
    "several": gym.spaces.MultiDiscrete([3, 2], start=[1, 0]),
}


class ContractEnv(gym.Env[Any, Any]):
    """Shows a random observation at each step; its episodes are functions of the seed and the actions."""

    def __init__(self, observations: str, actions: str) -> None:
        self.observation_space, self.action_space = OBSERVATIONS[observations], ACTIONS[actions]
        self._step = self._episode = 0
        self._shown = 0.0

    def _observation(self) -> Any:
        self._shown = float(self.np_random.uniform(-1, 1))
        return self._in(self.observation_space)

    def _in(self, space: gym.Space[Any]) -> Any:
        """What is shown, as an observation of a space."""
        if isinstance(space, gym.spaces.Dict):
            return {name: self._in(part) for name, part in space.spaces.items()}
        if isinstance(space, gym.spaces.Discrete):
            return np.int64((self._shown + 1) / 2 * int(space.n))
        assert isinstance(space, gym.spaces.Box)
        if space.dtype == np.uint8:
            return np.full(space.shape, 127.5 * (self._shown + 1), np.uint8)
        return np.array([self._shown, self._step / STEPS, 1.0], np.float32)[: space.shape[0]]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        self._episode += 1
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 1.0 - abs(float(np.mean(action)) / 2 - self._shown)
        self._step += 1
        early = self._episode % 3 == 0 and self._step == STEPS - 1
        return self._observation(), reward, early, self._step == STEPS, {}


def env_id(observations: str, actions: str) -> str:
    """The registered id of an environment."""
    name = f"Contract-{observations}-{actions}-v0"
    if name not in gym.registry:
        gym.register(
            name,
            f"{__name__}:ContractEnv",  # a string: data sets keep it
            kwargs={"observations": observations, "actions": actions},
            max_episode_steps=STEPS,
        )
    return name


def make_data(folder: Path, observations: str, actions: str, *, episodes: int = 8) -> str:
    """Saves episodes of random actions; returns their source id."""
    env = gym.make(env_id(observations, actions), disable_env_checker=True)
    env.action_space.seed(0)
    flattening = Flattening(
        env.observation_space, kept=not isinstance(env.observation_space, gym.spaces.Dict)
    )
    found = []
    for number in range(episodes):
        seen, taken, paid = [env.reset(seed=number)[0]], [], []
        over = terminated = False
        while not over:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            taken.append(action)
            paid.append(reward)
            over = terminated or truncated
        seen = [
            flattening(observation) if isinstance(observation, dict) else observation for observation in seen
        ]
        found.append(Trajectory(np.stack(seen), np.stack(taken), np.array(paid, np.float32), terminated))
    recorded = None if flattening.plain else env.observation_space
    info = DatasetInfo(str(folder), flattening.flat, env.action_space, env.spec, recorded_space=recorded)
    TrajectoryStore.from_trajectories(found, info).save(folder)
    return f"store:{folder}"


MODEL = {
    "context_length": 4,
    "embed_dim": 8,
    "num_layers": 1,
    "num_heads": 2,
    "local_dim": 4,
    "local_heads": 2,
}
"""Sizes that make a step a matter of milliseconds; a backbone takes what it knows of them."""
TRAINING = {"gradient_steps_per_iteration": 3, "train_batch_size_per_learner": 4, "warmup_steps": 2}
OFFLINE = {"gradient_steps": 6}
ONLINE = {
    "pretrain_steps": 2,
    "env_steps": 2 * STEPS,
    "env_steps_per_iteration": STEPS,
    "updates_per_iteration": 2,
    "replay_capacity_trajectories": 4,
    "critic_width": 8,
}


def values_of(algorithm: str, dataset: str, model: dict[str, Any], **online: Any) -> dict[str, Any]:
    """A config file of a run of seconds; with `online` it pretrains, and finetunes for two rounds."""
    values: dict[str, Any] = {
        "algorithm": algorithm,
        "offline_data": {"dataset": dataset},
        "rl_module": {"model_config": model},
        "training": {**TRAINING, **({} if online else OFFLINE)},
        "evaluation": {"target_returns": "dataset:2", "episodes_per_target": 2},
    }
    head = model.get("head", "auto")
    if head in HEADS and HEADS[head].drawn_in_evaluations:
        # Draws hang on how many are drawn at once; what is most likely does not.
        values["evaluation"]["action_selection"] = "mode"
    if online:
        values["online"] = {**ONLINE, **online}
    return values


def first_window(store: TrajectoryStore, context_length: int) -> Any:
    """The first steps of every episode, as tensors."""
    episodes = np.arange(store.num_episodes)
    return gather(store, episodes, np.zeros_like(episodes), context_length).to_torch()
