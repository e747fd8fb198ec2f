"""Games as the papers play them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing

from rayrl_dt import envs
from rayrl_dt.data.readers import atari_screens
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.atari import frames_per_step, to_frames
from rayrl_dt.errors import UserError

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")


def played(env: Any, steps: int, seed: int) -> list[Any]:
    actions = np.random.default_rng(seed).integers(env.action_space.n, size=steps)
    found = [env.reset(seed=seed)[0]]
    for action in actions:
        found += env.step(action)[:4]
    return found


def test_a_named_game_is_that_of_gymnasiums_wrapper() -> None:
    ours = envs.make("ALE/Breakout-v5")
    gym.register_envs(ale_py)
    plain = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    for found, wanted in zip(played(ours, 40, 1), played(AtariPreprocessing(plain), 40, 1), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert ours.observation_space.shape == (84, 84) and ours.action_space == gym.spaces.Discrete(4)


def test_seeds_reach_a_game_through_its_no_ops_alone() -> None:
    env = envs.make("ALE/Breakout-v5", noop_max=0)
    for one, other in zip(played(env, 20, 0)[:1], played(env, 20, 5)[:1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_options_are_presets_modes_and_stacks() -> None:
    dopamine = RecordedEnv.named("ALE/Pong-v5", preset="dopamine", max_episode_steps=9)
    assert dopamine.kwargs["repeat_action_probability"] == 0.25 and dopamine.limit == 9
    assert dopamine.wrappers[0].kwargs is not None and dopamine.wrappers[0].kwargs["noop_max"] == 0
    stacked = RecordedEnv.named("ALE/Pong-v5", frame_stack=4, screen_size=50, mode=1, difficulty=1)
    assert stacked.make().observation_space.shape == (4, 50, 50)
    assert RecordedEnv.from_json(stacked.to_json()) == stacked
    raw = RecordedEnv.named("ALE/Pong-v5", preset="raw")
    assert frames_per_step(raw) == frames_per_step(stacked) == 4
    assert frames_per_step(RecordedEnv.named("ALE/Pong-v5", frame_skip=2)) == 2
    assert frames_per_step(RecordedEnv.named("Pendulum-v1")) is None


def test_a_limit_counts_actions_and_not_emulated_frames() -> None:
    env = RecordedEnv.named("ALE/Breakout-v5", max_episode_steps=50).changed(max_episode_steps=7)
    assert env.limit == 7 and len(env.wrappers) == 2
    made = env.make()
    made.reset(seed=0)
    assert [made.step(0)[3] for _ in range(7)] == [False] * 6 + [True]
    assert env.changed(max_episode_steps=None).limit == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "atari"}, "Allowed: dopamine, papers, raw"),
        ({"frameskip": 2}, "give frame_skip"),
        ({"mode": 999}, "cannot be made .*mode"),
    ],
)
def test_what_cannot_be_played_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        envs.make("ALE/Breakout-v5", **options)
    with pytest.raises(UserError, match="Did you mean 'ALE/Breakout-v5'"):
        envs.make("ALE/Brakeout-v5")


def test_screens_become_frames_of_the_papers_form() -> None:
    """Also those of games that never flicker, where nothing is lost but color."""
    preprocessed = envs.make("ALE/Freeway-v5", noop_max=0)
    screens = gym.make("ALE/Freeway-v5", repeat_action_probability=0.0)
    seen = [preprocessed.reset(seed=0)[0], *(preprocessed.step(1)[0] for _ in range(20))]
    shown = [screens.reset(seed=0)[0], *(screens.step(1)[0] for _ in range(20))]
    found = to_frames(np.stack(shown))
    assert found.shape == (21, 84, 84)
    # Cars that moved between the last two screens are all that the maximum adds.
    differing = np.abs(found.astype(int) - np.stack(seen)) > 8
    assert differing.mean() < 0.05
    spec = screens.spec
    assert spec is not None
    again = RecordedEnv.of(atari_screens.preprocessed(spec))
    assert frames_per_step(again) == 4 and again.kwargs["repeat_action_probability"] == 0.0
