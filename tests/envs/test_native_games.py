"""Atari games in ale-py's threads are those of Gymnasium's wrapper, frame by frame."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import build_model
from gymnasium.wrappers import AtariPreprocessing
from image_data import image_store

from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.native_games import NATIVE
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.rollout import Slot, run_slots
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")


def made(game: str, mode: Any, count: int = 2, /, **options: Any) -> Any:
    return RecordedEnv.named(f"ALE/{game}-v5", **options).make_vector(count, mode=mode)


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("Breakout", {}),
        ("Pong", {"screen_size": 60, "full_action_space": True}),
        ("Freeway", {"frame_skip": 3, "max_num_frames_per_episode": 120}),
    ],
)
def test_frames_rewards_and_ends_are_gymnasiums(game: str, options: dict[str, Any]) -> None:
    ours, theirs = (made(game, mode, noop_max=0, **options) for mode in (NATIVE, "sync"))
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.observation_space == theirs.observation_space
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(seed=[3, 4])[0], theirs.reset(seed=[3, 4])[0])
    ended = 0
    for _ in range(130 if game == "Breakout" else 50):
        actions = rng.integers(ours.single_action_space.n, size=2)
        actions[0] = 1  # a ball after the other, never hit: the game is soon over
        found, wanted = ours.step(actions)[:4], theirs.step(actions)[:4]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
        ended += int(found[2].sum() + found[3].sum())
    assert ended > 0 or game == "Pong", "frames behind a reset are compared, too"
    ours.close()
    theirs.close()


def test_a_seed_is_a_slots_own_and_decides_over_its_no_ops() -> None:
    games = made("Pong", NATIVE, 4)
    first, infos = games.reset(seed=[7, 7, 1, 2])
    noops = infos["episode_frame_number"]
    assert noops[0] == noops[1] and len(set(noops.tolist())) > 1
    for step in range(10):
        np.testing.assert_array_equal(first[0], first[1])
        first = games.step(np.full(4, step % 6))[0]
    games.close()


def test_quotas_are_those_of_games_in_turn() -> None:
    """A slot that is done is not waited for, and counts for nothing."""
    model = build_model(image_store((84, 84)), context_length=2)
    slots = [Slot(1.0, 2, seed=0), Slot(5.0, 1, seed=1), Slot(9.0, 0, seed=2)]
    found = []
    for mode in (NATIVE, "sync"):
        games = made("Freeway", mode, 3, noop_max=0, max_num_frames_per_episode=60)
        found.append(run_slots(Collector(games, VectorActor(model, 3), record=True), slots))
        games.close()
    ours, theirs = (rollouts.episodes for rollouts in found)
    assert found[0].env_steps == found[1].env_steps == sum(each.length for each in ours)
    assert [(e.target, e.length) for e in ours] == [(1.0, 15), (1.0, 15), (5.0, 15)]
    for one, other in zip(ours, theirs, strict=True):
        assert one.trajectory is not None and other.trajectory is not None
        np.testing.assert_array_equal(one.trajectory.observations, other.trajectory.observations)
        np.testing.assert_array_equal(one.trajectory.actions, other.trajectory.actions)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": 4}, "has mode 4"),
        ({"terminal_on_life_loss": True}, "has terminal_on_life_loss True"),
        ({"frame_stack": 4}, "AtariPreprocessing, FrameStackObservation around it"),
        ({"max_episode_steps": 100}, "TimeLimit around it"),
        ({"preset": "raw"}, "has nothing around it"),
    ],
)
def test_what_the_threads_cannot_play_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=f"{why}; set gym_env_vectorize_mode: sync"):
        made("Breakout", NATIVE, **options)


def test_a_specification_of_recorded_data_says_the_defaults_too_and_is_played() -> None:
    gym.register_envs(ale_py)
    game = gym.make("ALE/Freeway-v5", frameskip=1, repeat_action_probability=0.0)
    spec = AtariPreprocessing(game, noop_max=0).spec
    assert spec is not None and "grayscale_newaxis" in spec.additional_wrappers[0].kwargs
    games = RecordedEnv.of(spec).make_vector(2, mode=NATIVE)
    np.testing.assert_array_equal(
        games.reset(seed=0)[0], made("Freeway", "sync", noop_max=0).reset(seed=0)[0]
    )
    games.close()
    with pytest.raises(UserError, match=r"has scale_obs True; set gym_env_vectorize_mode: sync"):
        RecordedEnv.of(AtariPreprocessing(game, scale_obs=True).spec).make_vector(2, mode=NATIVE)


def test_other_environments_and_actions_are_refused() -> None:
    with pytest.raises(UserError, match="Pendulum-v1 is none; set"):
        RecordedEnv.named("Pendulum-v1").make_vector(2, mode=NATIVE)
    games = made("Breakout", NATIVE)
    games.reset(seed=0)
    for actions in (np.array([0, 4]), np.array([-1, 0]), np.array([0.0, 1.0])):
        with pytest.raises(UserError, match="among the 4 of ALE/Breakout-v5, 0 to 3"):
            games.step(actions)
    games.close()
