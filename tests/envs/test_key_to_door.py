"""The rules of Key-to-Door, and that nothing but memory tells whether the key was taken."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rayrl_dt.envs
from rayrl_dt.envs.key_to_door import KeyToDoor, success_probability

RIGHT, LEFT, UP, DOWN = range(4)
BUMP = (RIGHT, RIGHT)


def toward(observation: np.ndarray[Any, Any]) -> int:
    """An optimal action: reduce the offset to what is in sight."""
    dx, dy = observation[7:9]
    if dx:
        return RIGHT if dx > 0 else LEFT
    return UP if dy > 0 else DOWN


def away(observation: np.ndarray[Any, Any]) -> int:
    dx, dy = observation[7:9]
    if dx:
        return LEFT if dx > 0 else RIGHT
    return DOWN if dy > 0 else UP


def play(*, take_key: bool, use_door: bool, seed: int = 0) -> tuple[list[Any], float, bool, dict[str, Any]]:
    env = KeyToDoor()
    observation, info = env.reset(seed=seed)
    observations, total, over = [observation], 0.0, False
    while not over:
        in_sight, room = observation[6] == 1, int(observation[:3].argmax())
        wanted = (take_key, False, use_door)[room]
        action = (toward if wanted else away)(observation) if in_sight else RIGHT
        observation, reward, over, truncated, info = env.step(np.int64(action))
        assert not truncated
        observations.append(observation)
        total += reward
    return observations, total, info["has_key"], info


def test_follows_gymnasiums_rules() -> None:
    check_env(KeyToDoor(), skip_render_check=True)
    env = gym.make("rayrl_dt/KeyToDoor-v0")
    assert isinstance(env.unwrapped, KeyToDoor)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 15


def test_registering_again_changes_nothing() -> None:
    before = gym.registry["rayrl_dt/KeyToDoor-v0"]
    rayrl_dt.envs.register()
    assert gym.registry["rayrl_dt/KeyToDoor-v0"] is before


@pytest.mark.parametrize("seed", range(20))
def test_the_optimal_policy_always_succeeds(seed: int) -> None:
    observations, total, has_key, info = play(take_key=True, use_door=True, seed=seed)
    assert (total, has_key, info["success"]) == (1.0, True, True)
    assert len(observations) - 1 == 2 + 11 + 1  # one step into the door ends it


def test_the_door_pays_nothing_without_the_key() -> None:
    observations, total, has_key, info = play(take_key=False, use_door=True)
    assert (total, has_key, info["success"]) == (0.0, False, False)
    assert len(observations) - 1 == 14


def test_the_key_alone_pays_nothing_and_the_episode_ends_after_fifteen_steps() -> None:
    observations, total, has_key, _ = play(take_key=True, use_door=False)
    assert (total, has_key) == (0.0, True)
    assert len(observations) - 1 == 15


@pytest.mark.parametrize("seed", range(5))
def test_nothing_seen_after_the_key_room_tells_whether_the_key_was_taken(seed: int) -> None:
    taken, *_ = play(take_key=True, use_door=True, seed=seed)
    missed, *_ = play(take_key=False, use_door=True, seed=seed)
    assert not np.array_equal(taken[1], missed[1])
    np.testing.assert_array_equal(np.array(taken[2:]), np.array(missed[2:]))


def test_the_key_vanishes_when_taken() -> None:
    class LongKeyRoom(KeyToDoor):
        room_steps = (3, 11, 2)

    env = LongKeyRoom()
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        assert observation[6] == 1
        observation, *_, info = env.step(np.int64(toward(observation)))
    assert info["has_key"]
    assert observation[0] == 1  # still in the key room
    np.testing.assert_array_equal(observation[6:], 0)


def test_keys_and_doors_are_everywhere_and_a_seed_fixes_them() -> None:
    env = KeyToDoor()
    keys = {tuple(env.reset(seed=seed)[0][7:9]) for seed in range(40)}
    assert keys == {(x, y) for x in (-0.5, 0.5) for y in (-0.5, 0.5)}
    first, second = (play(take_key=False, use_door=False, seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(np.array(first), np.array(second))


def test_a_random_walk_succeeds_as_often_as_in_the_paper() -> None:
    assert success_probability() == Fraction(1, 32)
    env = KeyToDoor()
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    episodes, successes = 4000, 0.0
    for _ in range(episodes):
        env.reset()
        over = False
        while not over:
            _, reward, over, _, _ = env.step(rng.integers(4))
            successes += reward
    assert successes / episodes == pytest.approx(0.03, abs=0.01)


def test_draws_itself() -> None:
    env = KeyToDoor(render_mode="ansi")
    env.reset(seed=0)
    drawing = env.render()
    assert drawing is not None
    assert drawing.splitlines()[0] == "room 1, 2 steps left"
    assert drawing.splitlines()[2][1] == "A"
    assert "K" in drawing
