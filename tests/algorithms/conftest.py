"""Ray is started once for each module of this folder, with room for two learners and two runners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    import ray

    ray.init(num_cpus=5, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def _save(folder: Path, env_id: str, lengths: list[int]) -> str:
    """Saves random-action episodes of a real environment as a store; returns its source id."""
    env = gym.make(env_id)
    rng = np.random.default_rng(0)
    trajectories = []
    for number, length in enumerate(lengths):
        observation, _ = env.reset(seed=number)
        observations, actions, rewards = [observation], [], []
        terminated = False
        for _ in range(length):
            if isinstance(env.action_space, gym.spaces.Discrete):
                action: Any = int(rng.integers(env.action_space.n))
            else:
                action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
            if terminated or truncated:
                break
        trajectories.append(
            Trajectory(np.stack(observations), np.array(actions), np.array(rewards, np.float32), terminated)
        )
    info = DatasetInfo(str(folder), env.observation_space, env.action_space, env.spec)
    TrajectoryStore.from_trajectories(trajectories, info).save(folder)
    return f"store:{folder}"


@pytest.fixture(scope="session")
def pendulum_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _save(tmp_path_factory.mktemp("data") / "pendulum", "Pendulum-v1", [200] * 6 + [3, 1])


@pytest.fixture(scope="session")
def cartpole_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _save(tmp_path_factory.mktemp("data") / "cartpole", "CartPole-v1", [50] * 20)


@pytest.fixture
def tiny(ray_session: None) -> Callable[..., Any]:
    """Returns a function that configures a run of seconds on a store."""

    def configure(dataset: str, *, steps: int = 12, algorithm: str = "DT", **model: Any) -> Any:
        from rayrl_dt import BCConfig, DTConfig, RADTConfig

        config = {"DT": DTConfig, "RADT": RADTConfig, "BC": BCConfig}[algorithm]()
        return (
            config.offline_data(dataset=dataset)
            .rl_module(
                model_config={"context_length": 4, "embed_dim": 16, "num_layers": 2, "num_heads": 2, **model}
            )
            .training(
                gradient_steps=steps,
                gradient_steps_per_iteration=4,
                train_batch_size_per_learner=8,
                warmup_steps=6,
            )
            .evaluation(target_returns="dataset:3", episodes_per_target=2)
        )

    return configure
