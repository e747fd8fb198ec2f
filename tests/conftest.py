"""Fixtures shared by all tests: no test reads or writes outside its own temporary folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import hypothesis
import numpy as np
import pytest

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def data_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test empty data set and cache folders, and no way to download."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RAYRL_DT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def make_trajectories() -> Callable[..., list[Trajectory]]:
    """Returns a function that makes random episodes.

    Rewards are multiples of 1/8, so that sums are exact in float32. Dimension 0 of the observations numbers
    them through all episodes, so that a test can tell where a row comes from.
    """

    def make(
        *,
        lengths: tuple[int, ...] = (1, 2, 7, 30, 30),
        observation_dim: int = 3,
        action_dim: int = 2,
        actions: int | None = None,
        first_action: int = 0,
        seed: int = 0,
    ) -> list[Trajectory]:
        rng = np.random.default_rng(seed)
        trajectories = []
        count = 0
        for number, length in enumerate(lengths):
            observations = rng.normal(size=(length + 1, observation_dim)).astype(np.float32)
            observations[:, 0] = np.arange(count, count + length + 1)
            count += length + 1
            if actions is None:
                taken: Any = rng.uniform(-1, 1, (length, action_dim)).astype(np.float32)
            else:
                taken = first_action + rng.integers(actions, size=length)
            rewards = rng.integers(-8, 17, length).astype(np.float32) / 8
            trajectories.append(Trajectory(observations, taken, rewards, terminated=number % 2 == 0))
        return trajectories

    return make


@pytest.fixture
def make_store(make_trajectories: Callable[..., list[Trajectory]]) -> Callable[..., TrajectoryStore]:
    """Returns a function that makes a small random store; give `actions` for a discrete one.

    Keywords are those of `make_trajectories`.
    """

    def make(
        *, observation_dim: int = 3, action_dim: int = 2, actions: int | None = None, **options: Any
    ) -> Any:
        first = options.get("first_action", 0)
        action_space: gym.Space[Any] = gym.spaces.Box(-1, 1, (action_dim,), np.float32)
        if actions is not None:
            action_space = gym.spaces.Discrete(actions, start=first)
        info = DatasetInfo(
            source="test",
            observation_space=gym.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32),
            action_space=action_space,
        )
        trajectories = make_trajectories(
            observation_dim=observation_dim, action_dim=action_dim, actions=actions, **options
        )
        return TrajectoryStore.from_trajectories(trajectories, info)

    return make


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray for all tests that need one, with room for two learners and two runners."""
    import ray
    from ray.tune.utils.util import UtilMonitor

    if ray.is_initialized():  # by a test that asks for less, and is over
        ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        # An algorithm watches the machine's load in a thread of its own, and waits 0.7 s for it when it stops.
        patch.setattr(UtilMonitor, "start", lambda self: None)
        options = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
        ray.init(address="local", num_cpus=5, **options)
        yield
        ray.shutdown()


@pytest.fixture
def joining_ray(ray_session: None) -> dict[str, str]:
    """The environment of a process that joins the tests' Ray, which takes less time than to start one of its own."""
    import ray

    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


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
