from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from builders import write_noise

from rayrl_dt.data import recipes, sources
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.data.store_files import ARRAYS
from rayrl_dt.data.writer import StoreWriter
from rayrl_dt.errors import UserError

ID = "toy/test-v0"


@pytest.fixture
def dataset(make_trajectories: Any, make_store: Any) -> str:
    return write_noise(ID, make_trajectories(), make_store().info)


def _cached() -> list[Path]:
    return sorted(sources.cache_root().iterdir())


def test_minari_source(dataset: str, make_store: Any) -> None:
    expected = make_store()
    for source in (f"minari:{dataset}", dataset):
        for cache in (True, True, False):
            store = sources.load(source, cache=cache)
            assert store.info.source == source
            assert (store.path is not None) == cache
            for name in ARRAYS:
                np.testing.assert_array_equal(getattr(store, name), getattr(expected, name))
    assert len(_cached()) == 1


def test_filters_are_views_of_the_cached_store(dataset: str) -> None:
    whole = sources.load(f"minari:{dataset}")
    store = sources.load(f"minari:{dataset}", top_percent=60, delayed_reward=True)
    assert 1 <= store.num_episodes < whole.num_episodes and store.delayed_reward
    np.testing.assert_array_equal(store.normalizer.mean, whole.normalizer.mean)
    np.testing.assert_array_equal(np.sort(store.episode_returns)[-1], whole.episode_returns.max())
    assert len(_cached()) == 1


def test_d4rl_source(make_trajectories: Any, tmp_path: Path) -> None:
    (trajectory,) = make_trajectories(lengths=(4,))
    path = tmp_path / "hopper_random-v2.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = (
            trajectory.observations[:-1],
            trajectory.observations[1:],
        )
        file["actions"], file["rewards"] = trajectory.actions, trajectory.rewards
        file["terminals"] = np.array([False, False, False, True])
    for cache in (True, False):
        store = sources.load(f"d4rl:{path}", cache=cache)
        np.testing.assert_array_equal(store.trajectory(0).observations, trajectory.observations)
        assert store.info.source == f"d4rl:{path}" and store.info.metadata["environment"] == "Hopper-v2"
    with pytest.raises(UserError, match="no file"):
        sources.load(f"d4rl:{tmp_path}/none.hdf5")


def test_recipe_source(make_trajectories: Any, make_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def ensure(name: str) -> str:
        made.append(name)
        return write_noise(ID, make_trajectories(), make_store().info, overwrite=True)

    monkeypatch.setattr(recipes, "ensure", ensure, raising=False)
    store = sources.load("recipe:toy")
    assert made == ["toy"] and store.num_episodes == 5 and store.info.source == "recipe:toy"


def test_store_source(make_store: Any, tmp_path: Path) -> None:
    folder = make_store().save(tmp_path / "saved")
    store = sources.load(f"store:{folder}", top_percent=100)
    assert store.num_episodes == 5 and store.info.source == f"store:{folder}"
    with pytest.raises(UserError, match=r"holds no store\.json, so it is no trajectory store"):
        sources.load(f"store:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("minar:toy/test-v0", "Did you mean 'minari'"),
        ("what:toy", "Allowed: d4rl, dqn-replay, minari, recipe, store"),
        ("dqn-replay:Pong", "there are no shards in Pong"),
        ("dqn-replay:Pong#steps=x", "the option 'steps=x'; allowed are steps and seed"),
        ("minari:", "names nothing"),
        ("", "names nothing"),
        ("file.hdf5", "write d4rl:file.hdf5"),
        (__file__, "is no HDF5 file; episodes of your own .*store_of_episodes"),
        (f"d4rl:{__file__}", "is no HDF5 file; episodes of your own .*store_of_episodes"),
        ("minari:toy/missing-v0", "no Minari data set 'toy/missing-v0'"),
        ("hopper", "no Minari data set 'hopper'"),
    ],
)
def test_bad_sources_are_refused(source: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        sources.load(source)
    assert "\n" not in str(caught.value)


def test_a_store_without_its_prefix_is_named(tmp_path: Path, make_store: Any) -> None:
    make_store().save(tmp_path / "mine")
    with pytest.raises(UserError, match=rf"has no prefix; write store:{tmp_path / 'mine'} for a saved store"):
        sources.load(str(tmp_path / "mine"))
    with pytest.raises(UserError, match=rf"^mine does not exist in {Path.cwd()}; name the folder"):
        sources.load("store:mine")


def test_changed_data_is_read_again(dataset: str, make_trajectories: Any, make_store: Any) -> None:
    before = sources.load(dataset)
    time.sleep(0.01)  # file times have a resolution
    write_noise(ID, make_trajectories(lengths=(3, 4), seed=1), make_store().info, overwrite=True)
    after = sources.load(dataset)
    assert after.num_episodes == 2
    assert before.observations[-1].shape == (3,)  # still readable though its files are gone
    assert len(_cached()) == 2


def test_states_of_data_that_nobody_used_for_a_week_are_deleted(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose copy of the data has another time opens a cache of its own, beside those of others."""
    day, (file,) = 24 * 3600, minari_io.data_folder(dataset).glob("*.hdf5")
    times = [100.0, 200.0, 300.0]
    stores = []
    for number in times:
        os.utime(file, (number, number))
        stores.append(sources.load(dataset).path)
    assert sorted(stores) == _cached(), "others may be in use"
    for path, days in zip(stores, (8, 6, 8), strict=True):
        used = time.time() - days * day
        os.utime(path, (used, used))
    sources.load(dataset)
    assert sorted(stores[1:]) == _cached(), "the one that is opened has been used just now"
    os.utime(stores[1], (0, 0))
    os.utime(file, (200.0, 200.0))
    assert sources.load(dataset).path == stores[1] and sorted(stores[1:]) == _cached()


def _killed_while_it_writes(dataset: str) -> None:
    # In a process of its own, which ends here: mypy knows no methods that are assigned.
    StoreWriter.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    sources.load(dataset)


def test_what_killed_processes_left_is_deleted_when_a_cache_is_opened(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_while_it_writes, args=(dataset,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    sources.load(dataset)
    assert len(list(sources.cache_root().glob(".*"))) == 1, "it may be in work"
    own = sources.cache_root() / ".somebody-0123456789ab"
    own.mkdir()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2 * 24 * 3600)
    path = sources.load(dataset).path
    assert _cached() == [own, path]


@pytest.mark.parametrize("damage", ["truncated", "missing", "header"])
def test_damaged_cache_is_rebuilt(dataset: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = np.array(sources.load(dataset).observations)
    (folder,) = _cached()
    if damage == "truncated":
        os.truncate(folder / "observations.npy", 200)
    elif damage == "missing":
        (folder / "lengths.npy").unlink()
    else:
        (folder / "store.json").write_text("")
    with caplog.at_level(logging.WARNING):
        store = sources.load(dataset)
    assert "Rebuilding the cache" in caplog.text
    np.testing.assert_array_equal(store.observations, expected)
    TrajectoryStore.open(folder)


def test_a_cache_that_another_user_keeps_closed_is_left_alone(
    dataset: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources.load(dataset)
    (folder,) = _cached()
    (folder / "store.json").write_text("")  # root may read and delete what others may not
    monkeypatch.setattr("rayrl_dt.data.sources.shutil.rmtree", lambda *_, **__: None)
    store = sources.load(dataset)
    assert store.path is None and store.num_episodes == 5
    assert f"{folder} is another user's. The data stays in memory" in caplog.text and _cached() == [folder]


def test_full_disk_falls_back_to_memory(
    dataset: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StoreWriter, "append", full)
    with caplog.at_level(logging.WARNING):
        store = sources.load(dataset)
    assert store.num_episodes == 5 and store.path is None
    assert "No space left on device" in caplog.text and not _cached()


def test_unusable_cache_folder_falls_back_to_memory(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYRL_DT_CACHE", str(tmp_path / "file" / "cache"))
    assert sources.load(dataset).num_episodes == 5


def test_damaged_data_leaves_no_cache(dataset: str) -> None:
    os.truncate(minari_io.data_folder(dataset) / "main_data.hdf5", 500)
    with pytest.raises(UserError, match="is damaged"):
        sources.load(dataset)
    assert not sources.cache_root().exists() or not _cached()


def test_processes_load_at_once(make_trajectories: Any, make_store: Any) -> None:
    write_noise(ID, make_trajectories(lengths=(40,) * 60), make_store().info)
    context = multiprocessing.get_context("fork")  # fast: nothing is imported again
    start, results = context.Barrier(3), context.SimpleQueue()

    def run() -> None:
        start.wait(timeout=60)
        store = sources.load(ID)
        results.put((store.num_steps, float(store.observations.sum()), str(store.path)))

    processes = [context.Process(target=run) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = {results.get() for _ in processes}
    (folder,) = _cached()
    assert len(found) == 1 and found.pop()[::2] == (2400, str(folder))


def test_a_recipe_that_was_not_made_yet_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(UserError, match="type rayrl-dt data make pendulum-mixed"):
        sources.locate("recipe:pendulum-mixed")
