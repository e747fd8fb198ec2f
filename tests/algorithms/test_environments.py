"""Environments in Ray: remote runners, trials of Tune and resumed runs make what the data or the user's script say."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import RescaleAction
from ray.tune.registry import register_env

from rayrl_dt import DT, OnlineDTConfig, SequencePolicy, UserError
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.runs import loop as runs
from rayrl_dt.types import Trajectory

pytestmark = pytest.mark.ray

# By the name under which Ray's workers find it: they know the folder that the tests are started in.
Walk: Any = importlib.import_module("tests.own_envs").Walk


def record(env: gym.Env[Any, Any], folder: Path, **info: Any) -> str:
    """Save two short random episodes."""
    episodes = []
    for seed in range(2):
        env.action_space.seed(seed)
        observations, actions = [env.reset(seed=seed)[0]], []
        for _ in range(5):
            actions.append(env.action_space.sample())
            observations.append(env.step(actions[-1])[0])
        episodes.append(
            Trajectory(np.stack(observations), np.stack(actions), np.arange(5, dtype=np.float32), False)
        )
    described = DatasetInfo(f"store:{folder}", env.observation_space, env.action_space, **info)
    return f"store:{TrajectoryStore.from_trajectories(episodes, described).save(folder)}"


@pytest.fixture
def walk_data(tmp_path: Path) -> str:
    return record(Walk(), tmp_path / "data")


@pytest.fixture
def script() -> Iterator[str]:
    """An environment that only this process has registered."""
    gym.register("Script-v0", entry_point=Walk, kwargs={"size": 2.0}, max_episode_steps=8)
    yield "Script-v0"
    del gym.registry["Script-v0"]


def online(dataset: str, env: Any, **section: Any) -> OnlineDTConfig:
    config = OnlineDTConfig()
    config.offline_data(dataset=dataset).environment(env, **section)
    config.rl_module(model_config={"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 1})
    config.training(train_batch_size_per_learner=8).evaluation(target_returns="3", episodes_per_target=1)
    config.online(pretrain_steps=1, env_steps=16, env_steps_per_iteration=8, updates_per_iteration=1)
    config.env_runners(num_env_runners=1, num_envs_per_env_runner=1)
    return config


@pytest.mark.parametrize("kind", ["script", "ray"])
def test_remote_runners_make_what_the_driver_registered(
    ray_session: None, script: str, walk_data: str, kind: str
) -> None:
    register_env("ray-walk", lambda config: gym.wrappers.TimeLimit(Walk(config["size"]), 8))
    section: dict[str, Any] = {"script": {}, "ray": {"env_config": {"size": 2.0}}}[kind]
    algorithm = online(walk_data, {"script": script, "ray": "ray-walk"}[kind], **section).build_algo()
    try:
        while not algorithm.done:
            result = algorithm.train()
        assert algorithm.env_steps == 16 and algorithm.collected_episodes == 2, "of 8 steps each"
        (target,) = algorithm.evaluate()["alignment"]["targets"]
        assert target["lengths"] == [8] and result
    finally:
        algorithm.stop()


def test_what_remote_runners_cannot_import_is_refused_at_once(
    ray_session: None, walk_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gym.register("Anonymous-v0", entry_point=lambda **kwargs: Walk(**kwargs), max_episode_steps=8)
    try:
        with pytest.raises(
            UserError, match="remote env runners cannot import; put it into a module"
        ) as caught:
            online(walk_data, "Anonymous-v0").build_algo()
        assert "\n" not in str(caught.value)
        local = online(walk_data, "Anonymous-v0").env_runners(num_env_runners=0).build_algo()
        local.stop()
    finally:
        del gym.registry["Anonymous-v0"]

    class Inner(Walk):
        """Has no name in its module."""

    with pytest.raises(UserError, match="'Inner' is a class that other processes cannot import"):
        online(walk_data, Inner).validate()


def test_a_trial_of_tune_makes_what_the_script_registered(
    tiny: Callable[..., Any], script: str, walk_data: str, tmp_path: Path
) -> None:
    from ray import tune

    config = (
        tiny(walk_data, steps=4).environment(script).evaluation(evaluation_interval=1, target_returns="3")
    )
    (result,) = tune.Tuner(
        DT, param_space=config, run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0)
    ).fit()
    (target,) = result.metrics["evaluation"]["alignment"]["targets"]
    assert target["lengths"] == [8, 8]


def run_of(data: str) -> dict[str, Any]:
    """A config file's content for two steps and an evaluation."""
    return {
        "algorithm": "DT",
        "offline_data": {"dataset": data},
        "rl_module": {
            "model_config": {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 1}
        },
        "training": {
            "gradient_steps": 2,
            "gradient_steps_per_iteration": 2,
            "train_batch_size_per_learner": 8,
        },
        "evaluation": {"target_returns": "-20,-5", "episodes_per_target": 1},
    }


@pytest.mark.parametrize("spec", [None, EnvSpec("Lost-v0", entry_point="no_such_package:Lost")])
def test_a_run_without_an_environment_trains_to_its_end(
    ray_session: None, tmp_path: Path, spec: EnvSpec | None
) -> None:
    data = record(Walk(), tmp_path / "data", env_spec=spec)
    outcome = runs.train(run_of(data), tmp_path / "run")
    assert outcome.last["gradient_steps"] == 2 and outcome.last.get("evaluation") is None
    policy = SequencePolicy.load(tmp_path / "run")
    policy.reset()
    assert Walk.action_space.contains(policy.act(np.zeros(2, np.float32)))
    with pytest.raises(UserError, match="name one with --env" if spec is None else "so it was not run"):
        evaluate_bundle(tmp_path / "run", targets="1", episodes_per_target=1)


def test_a_run_keeps_the_recorded_environment_when_it_goes_on(
    joining_ray: dict[str, str], tmp_path: Path
) -> None:
    """A limit, a wrapper and an environment of its own to evaluate in: in training, after `--resume`, and in `eval`."""
    collected = RescaleAction(gym.make("Pendulum-v1", max_episode_steps=7, g=4.0), -1.0, 1.0)
    evaluated = RescaleAction(gym.make("Pendulum-v1", max_episode_steps=11, g=3.0), -1.0, 1.0)
    data = record(collected, tmp_path / "data", env_spec=collected.spec, evaluation_spec=evaluated.spec)
    folder, file = tmp_path / "run", tmp_path / "config.yaml"
    values = run_of(data)
    runs.train(values, folder)
    file.write_text(yaml.safe_dump(values))
    longer = [sys.executable, "-m", "rayrl_dt", "train", str(file), "--out", str(folder), "--resume"]
    done = subprocess.run(
        [*longer, "--set", "training.gradient_steps=4"], capture_output=True, text=True, env=joining_ray
    )
    assert done.returncode == 0, done.stderr
    first, last = (
        json.loads(line)["evaluation"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    )
    assert [target["lengths"] for target in first["targets"] + last["targets"]] == [[11]] * 4
    again = evaluate_bundle(folder, targets="-20,-5", episodes_per_target=1).to_json()
    assert again["targets"] == last["targets"]
