"""Folders that appear whole: what they may replace, what killed writers leave, and many writers at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from builders import write_noise

from rayrl_dt.data import staging
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError

DAY = 24 * 3600
FORK = multiprocessing.get_context("fork")  # fast: nothing is imported again


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of somebody's own."""
    folder = tmp_path / "mine"
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "logs").write_text("months of logs")
    return folder


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


def test_a_store_replaces_stores_and_empty_folders_alone(
    make_store: Any, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(mine)
    for target in (mine, mine / "raw" / "logs"):
        with pytest.raises(
            UserError, match=r"holds no store\.json, so it is not replaced; choose another folder"
        ):
            make_store().save(target)
        assert files(mine) == before
    assert [path.name for path in mine.parent.iterdir()] == ["mine"] and len(list(mine.rglob("*"))) == 2
    (mine.parent / "empty").mkdir()
    for target in (mine.parent / "empty", mine.parent / "empty", mine.parent / "new"):
        assert TrajectoryStore.open(make_store().save(target)).num_episodes == 5


def test_what_appeared_meanwhile_is_not_replaced(make_store: Any, mine: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with (
        pytest.raises(UserError, match="so it is not replaced"),
        staging.replacing(target, header="h") as aside,
    ):
        (aside / "h").touch()
        shutil.copytree(mine, target)
    assert files(target) == files(mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "target"]


def test_what_is_linked_to_is_replaced_where_it_lies(make_store: Any, tmp_path: Path) -> None:
    place = make_store().save(tmp_path / "scratch" / "data")
    (tmp_path / "link").symlink_to(place)
    make_store(lengths=(3,)).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and TrajectoryStore.open(place).num_episodes == 1
    assert [path.name for path in place.parent.iterdir()] == ["data"]


def test_a_data_set_replaces_no_other_folder(make_store: Any, make_trajectories: Any, mine: Path) -> None:
    place, info = minari_io.datasets_root() / "toy/mine-v0", make_store().info
    shutil.copytree(mine, place)
    drawn = iter(make_trajectories())
    with pytest.raises(UserError, match=r"holds no data/metadata\.json, so it is not replaced"):
        write_noise("toy/mine-v0", drawn, info, overwrite=True)
    assert files(place) == files(mine)
    assert len(list(drawn)) == 5, "it is refused before anything is collected"


def test_what_killed_processes_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "data"
    left = staging.stage(target)
    os.utime(left, (0, 0))  # copied into it was a folder with the time that it had
    others = [staging.stage(tmp_path / "data-2"), tmp_path / ".data-backup", tmp_path / ".data-0123"]
    for other in others[1:]:
        other.mkdir()
    staging.stage(target).rmdir()
    assert left.exists(), "it may be in work"
    later(monkeypatch, 2 * DAY)
    staging.stage(target)
    assert not left.exists() and all(other.exists() for other in others)


def test_what_grows_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "data"
    growing, left = staging.stage(target), staging.stage(target)
    with (growing / "main").open("w") as file:
        time.sleep(1.6)
        file.write("more")
        file.flush()
        monkeypatch.setattr(staging, "_ABANDONED_AFTER_S", 1.5)
        staging.sweep(tmp_path, "data")
    assert growing.exists() and not left.exists()


def _write(target: Path, number: int, times: int, failed: Any) -> None:
    try:
        for _ in range(times):
            with staging.replacing(target, header="0") as aside:
                for name in range(3):
                    (aside / str(name)).write_text(str(number))
    except BaseException as error:
        failed.put(repr(error))
        raise


@pytest.mark.parametrize("exchanging", [True, False])
def test_many_writers_replace_one_folder(
    exchanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, failed = tmp_path / "policy", FORK.SimpleQueue()
    if not exchanging:  # as on systems other than Linux
        monkeypatch.setattr(staging, "_exchanged", lambda *_: False)
    writers = [FORK.Process(target=_write, args=(target, number, 150, failed)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert failed.empty(), failed.get()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(set(files(target).values())) == 1 and len(files(target)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_readers_never_miss_a_folder_that_is_replaced(tmp_path: Path) -> None:
    target, failed = tmp_path / "policy", FORK.SimpleQueue()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    if not staging._exchanged(tmp_path / "one", tmp_path / "two"):
        # Then two renames take its place, with a moment between them that nobody can close.
        pytest.skip("this file system cannot exchange folders")
    _write(target, 0, 1, failed)
    writer = FORK.Process(target=_write, args=(target, 1, 300, failed))
    writer.start()
    while writer.is_alive():
        assert (target / "2").read_text() in "01"
    writer.join()
    assert failed.empty()
