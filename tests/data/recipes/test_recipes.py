"""Each recipe, at a size of seconds: real Minari data, repeatable, with returns that spread."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest

from rayrl_dt import envs
from rayrl_dt.data import recipes, sources
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.recipes import pendulum, registry
from rayrl_dt.data.recipes.point_maze import WayPoints
from rayrl_dt.data.recipes.scripted import random_walks
from rayrl_dt.errors import UserError
from rayrl_dt.types import Trajectory

SMALL = {
    "pendulum-mixed": 20,
    "cartpole-mixed": 20,
    "reacher-mixed": 18,
    "pointmaze-umaze": 4,
    "key-to-door-1k": 30,
    "key-to-door-10k": 30,
}
GRADED = ("pendulum-mixed", "cartpole-mixed", "reacher-mixed", "pointmaze-umaze")


def made(name: str, **options: Any) -> tuple[list[Trajectory], Any]:
    if name.startswith("pointmaze"):
        pytest.importorskip("gymnasium_robotics")
    return minari_io.read(recipes.make(name, episodes=SMALL[name], **options))


@pytest.mark.parametrize("name", SMALL)
def test_makes_a_minari_data_set_whose_environment_is_recovered(name: str) -> None:
    trajectories, info = made(name)
    assert len(trajectories) == SMALL[name]
    data = minari.load_dataset(recipes.get(name).dataset_id)
    assert data.total_episodes == SMALL[name]
    env = data.recover_environment()
    assert info.env_spec is not None
    assert env.spec is not None
    assert env.spec.id == info.env_spec.id
    ours = info.environment.make()
    envs.check_spaces(ours.observation_space, ours.action_space, info.observation_space, info.action_space)
    assert all(trajectory.observations.dtype == np.float32 for trajectory in trajectories)
    assert all(info.action_space.contains(action) for action in trajectories[0].actions)
    assert info.metadata["ref_min_score"] < info.metadata["ref_max_score"]
    assert any(pin.startswith("gymnasium==") for pin in info.metadata["requirements"])
    assert info.metadata["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_makes_the_same_data(name: str) -> None:
    first, _ = made(name, seed=3)
    again, _ = made(name, seed=3, overwrite=True)
    other, _ = made(name, seed=4, overwrite=True)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.rewards, b.rewards)
    assert not np.array_equal(first[0].actions, other[0].actions)


@pytest.mark.parametrize("name", GRADED)
def test_returns_spread_between_random_and_clean(name: str) -> None:
    trajectories, info = made(name)
    low, high = info.metadata["ref_min_score"], info.metadata["ref_max_score"]
    returns = np.array([trajectory.episode_return for trajectory in trajectories])
    assert returns.std() > 0.15 * (high - low)
    assert ((returns > low) & (returns < high)).any()


def test_pendulum_returns_spread_as_widely_as_promised() -> None:
    trajectories, info = minari_io.read(recipes.make("pendulum-mixed", episodes=200))
    low, middle, high = np.percentile([t.episode_return for t in trajectories], [5, 50, 95])
    assert low < -1300 < -1000 < middle < -400 < -200 < high
    assert info.metadata["ref_max_score"] > -200


def test_pendulum_dynamics_are_gymnasiums() -> None:
    env = gym.make("Pendulum-v1")
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    state = env.unwrapped.state  # type: ignore[attr-defined]
    ours = pendulum.PendulumBatch(np.stack([state, state]))
    for _ in range(200):
        action = rng.uniform(-2.5, 2.5, size=(1,)).astype(np.float32)
        observation, reward, *_ = env.step(action)
        rewards = ours.step(np.stack([action, action]))
        assert rewards[1] == reward
        np.testing.assert_array_equal(ours.observations()[1], observation)


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    short, _ = made("key-to-door-1k")
    long, _ = minari_io.read(recipes.make("key-to-door-10k", episodes=60))
    for a, b in zip(short, long[: len(short)], strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)


def test_key_to_door_walks_succeed_as_often_as_in_the_paper() -> None:
    walks = list(random_walks(envs.KeyToDoor(), 0, 2000, None))
    assert np.mean([walk.rewards.sum() for walk in walks]) == pytest.approx(0.03, abs=0.01)
    assert all(walk.terminated for walk in walks)
    _, info = made("key-to-door-1k")
    assert info.metadata["ref_min_score"] == 1 / 32


def test_way_points_lead_round_corners() -> None:
    maze = WayPoints([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    # At rest in the upper left, the goal in the lower left: first to the right.
    rest = np.array([[-1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 0.0, 0.0]])
    force = maze(rest)[0]
    assert force[0] > 1
    assert abs(force[1]) < 1e-6


def test_ensure_makes_once_and_reports_progress() -> None:
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"episodes": 5, "progress": lambda done, total: seen.append((done, total))}
    assert recipes.ensure("pendulum-mixed", **options) == "rayrl_dt/pendulum/mixed-v0"
    assert seen[-1] == (5, 5)
    seen.clear()
    assert recipes.ensure("pendulum-mixed", **options) == "rayrl_dt/pendulum/mixed-v0"
    assert not seen
    assert recipes.ensure("pendulum-mixed", dataset_id="mine/other-v0", **options) == "mine/other-v0"
    assert minari_io.exists("mine/other-v0")


def test_data_of_another_seed_or_size_come_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    # As few as the test makes.
    monkeypatch.setitem(
        registry._RECIPES, "key-to-door-1k", replace(recipes.get("key-to-door-1k"), episodes=3)
    )
    source = "recipe:key-to-door-1k"
    assert "notes" not in sources.load(source).info.metadata, "made by itself"
    for options in ({"seed": 7}, {"episodes": 2}):
        recipes.make("key-to-door-1k", overwrite=True, **options)
        (note,) = sources.load(source).info.metadata["notes"]
        count, seed = options.get("episodes", 3), options.get("seed", 0)
        assert note.startswith(f"these are {count} episodes of seed {seed}, ")
        assert note.endswith("3 of seed 0: type rayrl-dt data make key-to-door-1k --overwrite to have them")
        assert "notes" not in sources.load(f"minari:{recipes.dataset_id('key-to-door-1k')}").info.metadata
    header = minari_io.data_folder(recipes.dataset_id("key-to-door-1k")) / "metadata.json"
    said = json.loads(header.read_text())
    del said["seed"]
    header.write_text(json.dumps(said))
    assert "notes" not in sources.load(source).info.metadata, "data of earlier versions do not say"


def test_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="Did you mean 'pendulum-mixed'"):
        recipes.make("pendulum-mix")
    with pytest.raises(UserError, match=r"no option 'sed'\. Did you mean 'seed'"):
        recipes.make("pendulum-mixed", sed=1)
    with pytest.raises(UserError, match="give at least 1"):
        recipes.make("pendulum-mixed", episodes=0)
    recipes.make("pendulum-mixed", episodes=2)
    with pytest.raises(UserError, match="is there already"):
        recipes.make("pendulum-mixed", episodes=2)
    with pytest.raises(UserError, match="needs an environment"):
        recipes.make("trained")


def test_lists_every_recipe() -> None:
    games = {"breakout-mixed", "freeway-mixed", "pong-mixed"}
    assert {*SMALL, *games, "pointmaze-medium", "trained"} == set(recipes.names())
    assert all(recipes.get(name).description for name in recipes.names())
