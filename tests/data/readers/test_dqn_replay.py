"""Shards in the published format, written by the test, and what is broken in them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.data import sources
from rayrl_dt.data.readers import dqn_replay
from rayrl_dt.errors import UserError

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

PADDING = 3


def write(folder: Path, number: int, part: str, values: Any) -> None:
    with gzip.open(folder / f"{part}_ckpt.{number}.gz", "wb", compresslevel=1) as file:
        np.save(file, np.asarray(values), allow_pickle=False)


def write_shard(
    folder: Path, number: int, lengths: list[int], *, rest: int = 5, full: bool = True
) -> list[np.ndarray[Any, Any]]:
    """Write a headless piece, episodes of the given lengths, an unfinished piece and a stale row; return frames."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    frames, actions, rewards, terminals, episodes = [], [], [], [], []

    def add(length: int, ends: bool, padded: bool) -> None:
        pads = PADDING if padded else 0
        shown = rng.integers(1, 256, (length, 84, 84), np.uint8)
        frames.append(np.concatenate([np.zeros((pads, 84, 84), np.uint8), shown]))
        actions.append(np.r_[np.zeros(pads, np.int32), rng.integers(4, size=length).astype(np.int32)])
        rewards.append(np.r_[np.zeros(pads, np.float32), rng.integers(2, size=length).astype(np.float32)])
        terminals.append(np.r_[np.zeros(pads + length - 1, np.uint8), np.uint8(ends)])
        if padded and ends:
            episodes.append(shown)

    add(4, ends=True, padded=False)
    for length in lengths:
        add(length, ends=True, padded=True)
    add(rest, ends=False, padded=True)
    if full:
        add(1, ends=True, padded=False)  # stale: of the shard before
    columns = {"observation": frames, "action": actions, "reward": rewards, "terminal": terminals}
    for name, parts in columns.items():
        write(folder, number, f"$store$_{name}", np.concatenate(parts))
    rows = sum(map(len, actions))
    write(folder, number, "add_count", np.int64((number + 1) * rows))
    write(folder, number, "invalid_range", np.arange(5))
    (folder / f"episode_end_indices_ckpt.{number}.gz").write_bytes(b"a pickle, never opened")
    return episodes


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The folder of a run."""
    return tmp_path / "Breakout" / "1" / "replay_logs"


def test_whole_episodes_alone_are_read_without_padding(shards: Path) -> None:
    written = write_shard(shards, 0, [6, 9, 3]) + write_shard(shards, 1, [7, 5])
    store = sources.load(f"dqn-replay:{shards.parent}")
    assert sorted(store.lengths.tolist()) == sorted(map(len, written))
    for number in range(store.num_episodes):
        episode = store.trajectory(number)
        (same,) = [each for each in written if np.array_equal(each, episode.observations[:-1])]
        np.testing.assert_array_equal(episode.observations[-1], same[-1])
    assert store.info.action_space == gym.spaces.Discrete(4)
    assert store.info.environment is not None and store.info.environment.kwargs["frameskip"] == 1
    assert "clipped" in store.info.metadata["notes"][0]


def test_actions_and_rewards_stay_with_their_frames(shards: Path) -> None:
    write_shard(shards, 0, [6, 9])
    with gzip.open(shards / "$store$_action_ckpt.0.gz") as file:
        actions = np.load(file)
    with gzip.open(shards / "$store$_reward_ckpt.0.gz") as file:
        rewards = np.load(file)
    store = sources.load(f"dqn-replay:{shards}", cache=False)
    begin = 4 + PADDING
    np.testing.assert_array_equal(store.trajectory(0).actions, actions[begin : begin + 6])
    np.testing.assert_array_equal(store.trajectory(0).rewards, rewards[begin : begin + 6])


def test_a_short_shard_is_as_long_as_it_was_written(shards: Path) -> None:
    write_shard(shards, 0, [6, 9], full=False)
    write(shards, 0, "add_count", np.int64(4 + PADDING + 6))
    assert sources.load(f"dqn-replay:{shards}", cache=False).lengths.tolist() == [6]


def test_samples_hang_on_their_seed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn_replay, "_VISIT", 1)
    for number in range(4):
        write_shard(shards, number, [3, 4, 5])

    def drawn(seed: int, steps: int = 12) -> Any:
        return sources.load(f"dqn-replay:{shards}#steps={steps},seed={seed}").observations

    np.testing.assert_array_equal(drawn(0), drawn(0))
    assert any(not np.array_equal(drawn(0), drawn(seed)) for seed in range(1, 5))
    assert 12 <= len(drawn(0)) < 12 + 5
    assert len(drawn(0, 1000)) == 4 * 12  # all there is
    monkeypatch.setattr(dqn_replay, "_REACH", 4 + PADDING + 3)
    assert len(drawn(5, 1001)) == 4 * 3  # rows beyond reach are never read


def _truncate(folder: Path) -> None:
    file = folder / "$store$_observation_ckpt.0.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, r"\$store\$_observation_ckpt.0.gz is truncated or damaged"),
        (lambda f: (f / "$store$_reward_ckpt.0.gz").unlink(), r"lacks \$store\$_reward_ckpt.0.gz"),
        (lambda f: write(f, 0, "$store$_action", np.zeros(3, np.int32)), "unequal lengths"),
        (lambda f: write(f, 0, "$store$_observation", np.zeros((9, 84, 84))), "holds float64 of shape"),
        (lambda f: (f / "$store$_terminal_ckpt.0.gz").write_bytes(b"none"), r"\$store\$_terminal.* damaged"),
    ],
)
def test_what_is_broken_is_named(shards: Path, damage: Callable[[Path], Any], says: str) -> None:
    write_shard(shards, 0, [6, 9])
    damage(shards)
    with pytest.raises(UserError, match=says):
        sources.load(f"dqn-replay:{shards}")


def test_the_game_is_the_name_of_a_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / "Nowhere" / "replay_logs", 0, [3])
    with pytest.raises(UserError, match=r"no folder of .* is named as a game"):
        sources.load(f"dqn-replay:{tmp_path / 'Nowhere'}")
