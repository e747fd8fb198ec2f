from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.data.store_files import ARRAYS
from rayrl_dt.data.writer import StoreWriter
from rayrl_dt.errors import UserError
from rayrl_dt.types import Trajectory


def _assert_same(one: TrajectoryStore, two: TrajectoryStore) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(two, name).dtype
    np.testing.assert_array_equal(one.normalizer.mean, two.normalizer.mean)
    np.testing.assert_array_equal(one.normalizer.std, two.normalizer.std)
    assert one.info == two.info and one.delayed_reward == two.delayed_reward


def test_trajectories_come_back(make_store: Any, make_trajectories: Any) -> None:
    store, trajectories = make_store(), make_trajectories()
    assert store.num_episodes == len(trajectories) and store.num_steps == sum(map(len, trajectories))
    for number, expected in enumerate(trajectories):
        found = store.trajectory(number)
        np.testing.assert_array_equal(found.observations, expected.observations)
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.rewards, expected.rewards)
        assert found.terminated == expected.terminated
        assert store.episode_returns[number] == expected.episode_return


@pytest.mark.parametrize("actions", [None, 4])
def test_save_and_open(make_store: Any, tmp_path: Path, actions: int | None) -> None:
    store = make_store(actions=actions, first_action=2 if actions else 0)
    opened = TrajectoryStore.open(store.save(tmp_path / "store"))
    _assert_same(store, opened)
    assert opened.path == tmp_path / "store"
    assert not opened.observations.flags.writeable
    store.save(tmp_path / "store")  # replaces
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_headers_are_json_to_the_letter_and_older_ones_are_read(make_store: Any, tmp_path: Path) -> None:
    store = make_store()
    folder = store.save(tmp_path / "store")
    text = (folder / "store.json").read_text()
    header = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert header["info"]["observation_space"]["low"] == "-inf"
    old = json.loads(text.replace('"-inf"', "-Infinity").replace('"inf"', "Infinity"))
    for name in ("recorded_space", "evaluation_spec"):
        del old["info"][name]
    del old["checksums"], old["raised"]
    (folder / "store.json").write_text(json.dumps(old))
    _assert_same(store, TrajectoryStore.open(folder))


def test_delayed_view_survives_saving(make_store: Any, tmp_path: Path) -> None:
    store = make_store().with_delayed_rewards()
    assert store.delayed_reward
    _assert_same(store, TrajectoryStore.open(store.save(tmp_path / "store")))


@pytest.mark.parametrize(
    "damage",
    [
        "header",
        "format",
        "array",
        "truncated",
        "length",
        "empty",
        "zeroed",
        "flipped",
        "episodes",
        "shape",
        "list",
        "metadata",
        "notes",
    ],
)
def test_damaged_folder_is_refused(make_store: Any, tmp_path: Path, damage: str) -> None:
    folder = make_store().save(tmp_path / "store")
    if damage == "header":
        (folder / "store.json").write_text('{"format": 1')
    elif damage == "format":
        header = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps({**header, "format": 99}))
    elif damage == "array":
        (folder / "rewards.npy").unlink()
    elif damage == "truncated":
        whole = (folder / "observations.npy").read_bytes()
        (folder / "observations.npy").write_bytes(whole[: len(whole) // 2])
    elif damage == "zeroed":
        np.save(folder / "observations.npy", np.zeros_like(np.load(folder / "observations.npy")))
    elif damage == "flipped":
        content = bytearray((folder / "actions.npy").read_bytes())
        content[-5] ^= 1
        (folder / "actions.npy").write_bytes(content)
    elif damage == "episodes":
        np.save(folder / "lengths.npy", np.load(folder / "lengths.npy") + 1)
    elif damage == "shape":
        np.save(folder / "actions.npy", np.load(folder / "actions.npy")[:, :1])
    elif damage == "list":
        (folder / "store.json").write_text("[]")
    elif damage in ("metadata", "notes"):
        header = json.loads((folder / "store.json").read_text())
        header["info"]["metadata"] = [] if damage == "metadata" else {"notes": 3}
        (folder / "store.json").write_text(json.dumps(header))
    elif damage == "length":
        np.save(folder / "rewards.npy", np.zeros(3, np.float32))
    else:
        folder = tmp_path
    message = r"not a whole trajectory store.*restore it, or save it again"
    if folder == tmp_path:
        message = r"holds no store.json, so it is no trajectory store; name the folder"
    with pytest.raises(UserError, match=message):
        TrajectoryStore.open(folder)
    with pytest.raises(UserError, match=r"absent does not exist; name the folder that a store was saved in"):
        TrajectoryStore.open(tmp_path / "absent")


def test_bad_episodes_are_refused(make_trajectories: Any, make_store: Any) -> None:
    info = make_store().info
    with pytest.raises(UserError, match="holds no episodes"):
        TrajectoryStore.from_trajectories([], info)
    with pytest.raises(UserError, match=r"episode 0 has observations of shape \(5,\)"):
        TrajectoryStore.from_trajectories(make_trajectories(observation_dim=5), info)
    with pytest.raises(UserError, match="episode 0 has actions of shape"):
        TrajectoryStore.from_trajectories(make_trajectories(action_dim=4), info)
    with pytest.raises(UserError, match="NaN or infinite rewards"):
        Trajectory(np.zeros((2, 3)), np.zeros((1, 2)), np.array([np.nan]), terminated=True)
    with pytest.raises(UserError, match=r"T\+1, T and T"):
        Trajectory(np.zeros((1, 3)), np.zeros((1, 2)), np.zeros(1), terminated=True)


@pytest.mark.parametrize("actions", [None, 4])
def test_writer_makes_the_same_store(make_store: Any, tmp_path: Path, actions: int | None) -> None:
    store = make_store(actions=actions)
    with StoreWriter(tmp_path / "written", store.info) as writer:
        for number in range(store.num_episodes):
            writer.append(store.trajectory(number))
    _assert_same(store, TrajectoryStore.open(tmp_path / "written"))


def test_writer_keeps_images_as_bytes(tmp_path: Path) -> None:
    space = gym.spaces.Box(0, 255, (8, 8, 2), np.uint8)
    info = DatasetInfo("images", space, gym.spaces.Discrete(3))
    image = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 2), dtype=np.uint8)
    episode = Trajectory(image, np.array([0, 1, 2, 1]), np.ones(4), terminated=False)
    with StoreWriter(tmp_path / "written", info) as writer:
        writer.append(episode)
    opened = TrajectoryStore.open(tmp_path / "written")
    assert opened.observations.dtype == np.uint8 and opened.normalizer.std.max() == 1
    np.testing.assert_array_equal(opened.trajectory(0).observations, image)


def test_writer_leaves_nothing_behind_when_it_fails(make_store: Any, tmp_path: Path) -> None:
    store = make_store()
    with pytest.raises(ZeroDivisionError), StoreWriter(tmp_path / "written", store.info) as writer:
        writer.append(store.trajectory(0))
        raise ZeroDivisionError
    with pytest.raises(UserError, match="holds no episodes"), StoreWriter(tmp_path / "written", store.info):
        pass
    assert not list(tmp_path.iterdir())


def test_slower_writer_keeps_the_faster_ones_store(make_store: Any, tmp_path: Path) -> None:
    store = make_store()
    with StoreWriter(tmp_path / "written", store.info) as slow:
        slow.append(store.trajectory(0))
        store.save(tmp_path / "written")
    _assert_same(store, TrajectoryStore.open(tmp_path / "written"))
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


def test_views_share_arrays_and_statistics(make_store: Any) -> None:
    store = make_store()
    view = store.select([3, 1])
    assert view.observations is store.observations and view.normalizer is store.normalizer
    assert view.num_steps == store.lengths[3] + store.lengths[1]
    np.testing.assert_array_equal(view.trajectory(1).observations, store.trajectory(1).observations)
    with pytest.raises(UserError, match="weaker filter"):
        store.select([])
    delayed = store.with_delayed_rewards()
    np.testing.assert_array_equal(delayed.episode_returns, store.episode_returns)
    assert delayed.observations is store.observations and not store.delayed_reward
