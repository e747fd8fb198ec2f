"""Minari's Atari sets in color, and environments whose actions last otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import writes_bytes

from rayrl_dt import DTConfig, UserError
from rayrl_dt.algorithms import environments
from rayrl_dt.data import sources
from rayrl_dt.data.readers import minari_io
from rayrl_dt.envs.atari import frames_per_step, to_frames
from rayrl_dt.types import RawEpisode

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")
pytestmark = writes_bytes


OWN = {"mode": 2, "difficulty": 1, "full_action_space": True, "max_num_frames_per_episode": 4000}
"""Of a game that is not as it is registered."""


@pytest.fixture
def screens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A set of one short episode in color, as Minari's are: no sticky actions, four frames an action."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    gym.register_envs(ale_py)
    env = gym.make("ALE/Freeway-v5", repeat_action_probability=0.0, max_episode_steps=500, **OWN)
    seen = [env.reset(seed=0)[0], *(env.step(1)[0] for _ in range(6))]
    minari_io.write(
        "screens-v0",
        [RawEpisode(np.stack(seen), np.ones(6, np.int64), np.zeros(6), True)],
        observation_space=env.observation_space,
        action_space=env.action_space,
        env_spec=env.spec,
        author="test",
        algorithm_name="up",
        description="screens in color",
    )
    return np.stack(seen)


def test_sets_in_color_are_brought_to_the_papers_form(screens: Any) -> None:
    store = sources.load("minari:screens-v0", cache=False)
    np.testing.assert_array_equal(store.trajectory(0).observations, to_frames(screens))
    (note,) = store.info.metadata["notes"]
    assert "gray frames of 84 x 84" in note and "without the maximum" in note
    env = store.info.environment
    assert env is not None and frames_per_step(env) == 4 and env.kwargs["repeat_action_probability"] == 0.0
    assert OWN.items() <= env.kwargs.items() and env.limit == 500
    made = env.make()
    assert made.observation_space == store.info.observation_space
    assert made.action_space == store.info.action_space == gym.spaces.Discrete(18)


def test_an_environment_whose_actions_last_otherwise_is_refused(screens: Any) -> None:
    info = sources.load("minari:screens-v0", cache=False).info
    same = DTConfig().environment("ALE/Freeway-v5", env_config={"preset": "dopamine"})
    chosen = environments.chosen(same, info)
    assert chosen is not None and chosen.kwargs["repeat_action_probability"] == 0.25
    other = DTConfig().environment("ALE/Freeway-v5", env_config={"frame_skip": 2})
    with pytest.raises(UserError, match=r"minari:screens-v0 lasts 4 frames, .* here 2; set .*frame_skip"):
        environments.chosen(other, info)
