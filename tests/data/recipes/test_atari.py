"""Players of Atari games, and the data that they make."""

from __future__ import annotations

import itertools
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
from builders import writes_bytes

from rayrl_dt.data import recipes, sources
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.recipes.atari import play
from rayrl_dt.types import RawEpisode

pytest.importorskip("ale_py")
pytest.importorskip("cv2")


@writes_bytes
def test_what_is_written_replays_to_the_same_frames(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("RAYRL_DT_CACHE", str(tmp_path / "cache"))
    name = recipes.make("breakout-mixed", episodes=2, seed=3)
    store = sources.load(f"minari:{name}")
    assert store.observations.shape == (store.num_steps, 84, 84) and store.observations.dtype == np.uint8
    assert store.info.metadata["seed"] == 3
    file = tmp_path / name / "data" / "main_data.hdf5"
    assert file.stat().st_size < 0.1 * store.nbytes()
    with h5py.File(file) as content:
        seeds = [int(content[f"episode_{number}"].attrs["seed"]) for number in range(2)]
    assert store.info.environment is not None
    env = store.info.environment.make()
    episode = store.trajectory(1)
    np.testing.assert_array_equal(env.reset(seed=seeds[1])[0], episode.observations[0])
    steps = min(len(episode), 150)
    for step in range(steps):
        frame, reward, terminated, truncated, _ = env.step(episode.actions[step])
        np.testing.assert_array_equal(frame, episode.observations[step + 1])
        assert reward == episode.rewards[step]
        assert (terminated or truncated) == (step == len(episode) - 1)


def test_episodes_do_not_hang_on_how_many_there_are() -> None:
    one, again = (next(itertools.islice(play("Breakout", episodes=2, seed=0), 1, None)) for _ in range(2))
    np.testing.assert_array_equal(one.actions, again.actions)
    assert one.rewards.sum() > 20  # undisturbed: uniformly random play makes some 2 points


@writes_bytes
def test_images_are_compressed_without_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    frames = np.zeros((130, 40, 40), np.uint8)
    frames[:, 3] = np.arange(130)[:, None]
    space = gym.spaces.Dict({"eye": gym.spaces.Box(0, 255, (40, 40), np.uint8)})
    episode = RawEpisode({"eye": frames}, np.zeros(129, np.int64), np.zeros(129), True)
    minari_io.write(
        "eyes-v0",
        [episode],
        observation_space=space,
        action_space=gym.spaces.Discrete(2),
        env_spec=None,
        author="test",
        algorithm_name="none",
        description="images in a Dict",
    )
    with h5py.File(tmp_path / "eyes-v0" / "data" / "main_data.hdf5") as content:
        kept = content["episode_0/observations/eye"]
        assert kept.compression == "gzip" and kept.id.get_storage_size() < 0.05 * frames.nbytes
        np.testing.assert_array_equal(kept[()], frames)
