"""Runs whose folder is copied to storage elsewhere, and that go on where the machine was lost."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import StopAt, values

from rayrl_dt.errors import UserError
from rayrl_dt.runs import loop as runs
from rayrl_dt.runs import remote_copy
from rayrl_dt.runs.checkpoints import latest_checkpoint
from rayrl_dt.runs.inputs import locked
from rayrl_dt.runs.remote_copy import RemoteCopy, storage, working_folder


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_files(folder: Path) -> dict[str, bytes]:
    """What is copied of a run folder: all but what is hidden."""
    return {name: data for name, data in files(folder).items() if "/." not in f"/{name}"}


def copied(uri: str, folder: Path, *, resume: bool) -> RemoteCopy:
    copy = RemoteCopy(uri, folder)
    copy.check(resume=resume)
    return copy


@pytest.mark.ray
def test_a_run_goes_on_where_its_machine_was_lost(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket" / "run"
    uri, first, second = f"file://{bucket}", tmp_path / "first", tmp_path / "second"
    settings = values(pendulum_data)
    runs.train(settings, tmp_path / "straight")
    runs.train(settings, first, copy=copied(uri, first, resume=False), observer=StopAt(8))
    there = files(bucket)
    listed = json.loads(there.pop("files.json"))
    assert there == run_files(first)
    assert listed == {name: len(data) for name, data in there.items()}
    shutil.rmtree(first)

    outcome = runs.train(settings, second, resume=True, copy=copied(uri, second, resume=True))
    assert outcome.finished
    weights = "policy/policy.safetensors"
    assert files(bucket)[weights] == files(second)[weights] == files(tmp_path / "straight")[weights]
    assert {path.name for path in (bucket / "checkpoints").iterdir() if any(path.rglob("*.*"))} == {
        path.name for path in (second / "checkpoints").iterdir()
    }, "what was pruned is gone there, too"
    with pytest.raises(UserError, match="exists already; continue it with --resume"):
        copied(uri, second, resume=False)


def test_a_run_that_was_lost_before_its_first_copy_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while its data load; the slash at the end of a URI comes and goes with whoever types it."""

    def lost(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(runs, "_build", lost)
    uri, folder = f"file://{tmp_path}/bucket/run", tmp_path / "run"
    for out, resume in ((uri, False), (uri, True), (f"{uri}/", True), (f"{uri}/", False), (uri, False)):
        copy = copied(out, folder, resume=resume)
        with pytest.raises(MemoryError):
            runs.train(values("recipe:pendulum-mixed"), folder, resume=resume, copy=copy)
    (folder / ".copy").write_text(f"{uri}/")  # of an earlier version
    copied(uri, folder, resume=True)
    with pytest.raises(UserError, match="is another run's; move it away"):
        copied(f"{uri}-other", folder, resume=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder like a run's."""
    folder = tmp_path / "runs" / "one"
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/000000004/state"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / ".copy").write_text(f"file://{tmp_path}/bucket/one")
    return folder


def test_what_is_not_listed_is_not_fetched(run: Path, tmp_path: Path) -> None:
    """A machine that is lost while it copies leaves a checkpoint in part, which the list does not name."""
    uri = f"file://{tmp_path}/bucket/one"
    RemoteCopy(uri, run).finish()
    half = tmp_path / "bucket" / "one" / "checkpoints" / "000000008" / "state"
    half.parent.mkdir()
    half.write_text("half")
    copied(uri, tmp_path / "again", resume=True)
    assert run_files(tmp_path / "again") == run_files(run)


def test_a_folder_that_is_ahead_of_its_copy_is_kept(run: Path, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/bucket/one"
    RemoteCopy(uri, run).finish()
    later = run / "checkpoints" / "000000008"
    later.mkdir()
    (run / "metrics.jsonl").write_text("more")
    copied(uri, run, resume=True)
    assert (run / "metrics.jsonl").read_text() == "more"
    later.rmdir()
    shutil.rmtree(run / "checkpoints")
    copied(uri, run, resume=True)
    assert (run / "metrics.jsonl").read_text() == "metrics.jsonl", "that of the copy, which is ahead"


def write_run(folder: Path, *steps: int, prune: int | None = None) -> None:
    """Write what a run leaves that goes on to some gradient steps; its state grows, its policy does not."""
    for step in steps:
        checkpoint = folder / "checkpoints" / f"{step:09d}"
        (checkpoint / "policy").mkdir(parents=True)
        (checkpoint / "algorithm").write_text(f"{step:09d}")
        (checkpoint / "policy" / "policy.json").write_text(f"{step:09d}")
        (checkpoint / "state").write_bytes(bytes(1000 * step))
    (folder / "config.yaml").write_text("config")
    (folder / "policy").mkdir(exist_ok=True)
    (folder / "policy" / "policy.json").write_text(f"{steps[-1]:09d}")
    (folder / "metrics.jsonl").write_text("line\n" * steps[-1])
    if prune is not None:
        shutil.rmtree(folder / "checkpoints" / f"{prune:09d}")


def fetch_until_killed(uri: str, folder: Path, *, at: int) -> None:
    """Fetch in a process that the system kills in the midst of the state of a checkpoint."""

    def fetch() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * at - 500,) * 2)
        copied(uri, folder, resume=True)

    process = multiprocessing.get_context("fork").Process(target=fetch)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGXFSZ


@pytest.fixture
def two_machines(tmp_path: Path) -> tuple[str, Path, Path]:
    """A copy that a second machine has brought further than the first one, and the folders of both."""
    uri, first, second = f"file://{tmp_path}/bucket/run", tmp_path / "first", tmp_path / "second"
    write_run(first, 100)
    RemoteCopy(uri, first).finish()
    copy = copied(uri, second, resume=True)
    write_run(second, 150, 200, 250, prune=100)
    copy.finish()
    return uri, first, second


@pytest.mark.parametrize(("killed_at", "newest"), [(150, 100), (250, 200)])
@pytest.mark.parametrize("machine", ["first", "third"])
def test_a_fetch_that_was_killed_is_resumed(
    two_machines: tuple[str, Path, Path], tmp_path: Path, machine: str, killed_at: int, newest: int
) -> None:
    uri, _, second = two_machines
    folder, bucket = tmp_path / machine, tmp_path / "bucket" / "run"
    there = files(bucket)
    fetch_until_killed(uri, folder, at=killed_at)
    whole = latest_checkpoint(folder)
    assert (int(whole.name) if whole else 100) == newest, "a checkpoint that is there in part is none"
    copy = copied(uri, folder, resume=True)
    copy.finish()
    assert {name: data for name, data in files(bucket).items() if name in there} | {
        "files.json": there["files.json"]
    } == there
    shutil.rmtree(folder / "checkpoints" / "000000100", ignore_errors=True)
    assert run_files(folder) == run_files(second)


def test_a_half_fetched_checkpoint_is_mended(two_machines: tuple[str, Path, Path], tmp_path: Path) -> None:
    """Earlier versions left such: the newest is here, what is older or belongs to it is not, or in part."""
    uri, _, second = two_machines
    folder = tmp_path / "third"
    copied(uri, folder, resume=True)
    shutil.rmtree(folder / "checkpoints" / "000000150")
    (folder / "checkpoints" / "000000250" / "policy" / "policy.json").unlink()
    (folder / "checkpoints" / "000000200" / "state").write_bytes(b"half")
    (folder / "metrics.jsonl").write_text("line\n")
    (folder / "config.yaml").unlink()
    copied(uri, folder, resume=True)
    assert run_files(folder) == run_files(second)


def test_what_was_added_here_is_kept(two_machines: tuple[str, Path, Path], tmp_path: Path) -> None:
    uri, _, second = two_machines
    (second / "policy" / "policy.json").write_text("with a critic that was trained since")
    critic = second / "checkpoints" / "000000250" / "policy" / "critic.safetensors"
    critic.write_text("critic")
    before = run_files(second)
    copied(uri, second, resume=True)
    assert run_files(second) == before


def test_what_this_process_did_not_copy_is_not_deleted(
    two_machines: tuple[str, Path, Path], tmp_path: Path
) -> None:
    uri, first, _ = two_machines
    copy = RemoteCopy(uri, first)
    there = files(tmp_path / "bucket" / "run" / "checkpoints")
    copy.finish()
    assert files(tmp_path / "bucket" / "run" / "checkpoints").items() >= there.items()
    copied(uri, tmp_path / "third", resume=True)
    assert files(tmp_path / "third" / "checkpoints").keys() >= there.keys(), "it is listed still"
    shutil.rmtree(first / "checkpoints" / "000000100")
    copy.finish()
    left = files(tmp_path / "bucket" / "run" / "checkpoints")
    assert left == there, "its own is gone"


def test_a_folder_under_way_is_not_fetched_into(two_machines: tuple[str, Path, Path]) -> None:
    uri, first, _ = two_machines
    before = run_files(first)
    with locked(first, what="run"), pytest.raises(UserError, match="a run is under way in"):
        copied(uri, first, resume=True)
    assert run_files(first) == before


@pytest.mark.parametrize("stray", ["notes.txt", "notes/of.txt", "000000008"])
def test_a_stray_file_among_checkpoints_is_no_checkpoint(run: Path, tmp_path: Path, stray: str) -> None:
    uri, file = f"file://{tmp_path}/bucket/one", run / "checkpoints" / stray
    file.parent.mkdir(exist_ok=True)
    file.write_text("notes")
    RemoteCopy(uri, run).finish()
    for folder in (run, tmp_path / "again"):
        copied(uri, folder, resume=True)
        assert (folder / "checkpoints" / stray).read_text() == "notes"


def test_only_what_changed_is_copied(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, sent, send = RemoteCopy(f"file://{tmp_path}/bucket/one", run), [], remote_copy.upload

    def upload(path: Path, *where: Any) -> None:
        sent.append(path.name)
        send(path, *where)

    monkeypatch.setattr("rayrl_dt.runs.remote_copy.upload", upload)
    copy.finish()
    assert len(sent) == 3
    (run / "metrics.jsonl").write_text("metrics.jsonl, and more")
    copy.finish()
    assert sent[3:] == ["metrics.jsonl"]


def test_files_that_come_and_go_stop_no_copy(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = remote_copy.file_state

    def state(path: Path) -> Any:
        if path.name == "metrics.jsonl":
            raise FileNotFoundError(path)
        return known(path)

    monkeypatch.setattr(remote_copy, "file_state", state)
    RemoteCopy(f"file://{tmp_path}/bucket/one", run).push()
    monkeypatch.undo()
    there = run_files(tmp_path / "bucket" / "one")
    assert there.keys() - {"files.json"} == run_files(run).keys() - {"metrics.jsonl"}


def test_a_run_goes_on_while_its_copy_cannot_be_reached(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = RemoteCopy(f"file://{tmp_path}/bucket/one", run)
    (tmp_path / "bucket").write_text("not a folder")
    copy.push()
    assert "bucket/one cannot be reached" in caplog.text and f"The run goes on in {run}" in caplog.text
    with pytest.raises(UserError, match=r"cannot be reached .*; check name, credentials and network"):
        copy.finish()
    (tmp_path / "bucket").unlink()
    copy.push()
    assert (tmp_path / "bucket" / "one" / "metrics.jsonl").read_text() == "metrics.jsonl"


@pytest.mark.parametrize(
    ("made", "resume", "message"),
    [
        ({"run/other": "x"}, False, "is another run's; move it away, or give --out another name"),
        ({}, True, "has nothing to resume; start it without --resume"),
        ({"bucket/one/files.json": '{"../over": 1}'}, True, r"lists '\.\./over', which lies elsewhere"),
        (
            {"bucket/one/files.json": '{"config.yaml"'},
            True,
            "is damaged .*; restore it, or choose another --out",
        ),
        (
            {"bucket/one/files.json": '{"config.yaml": []}'},
            True,
            "is damaged .*; restore it, or choose another",
        ),
    ],
)
def test_what_cannot_be_is_refused(made: dict[str, str], resume: bool, message: str, tmp_path: Path) -> None:
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        copied(f"file://{tmp_path}/bucket/one", tmp_path / "run", resume=resume)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s4://bucket/run", "'s4://bucket/run', which cannot be used .*; give a folder, or a URI"),
        ("s3://", "which names no folder; give one, as in s3://bucket/runs/hopper"),
        ("s3://bucket", "which names no folder"),
    ],
)
def test_what_is_no_place_is_refused(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        working_folder(uri, Path("runs/default"))
        storage(uri)


def test_a_cloud_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    uri = "s3://bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(
        UserError, match=r"cannot be reached \(.*\); check name, credentials and network"
    ) as caught:
        RemoteCopy(uri, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert working_folder(uri, tmp_path / "default") == (Path("runs/run"), uri)


def test_a_run_works_where_out_says_or_in_the_default() -> None:
    assert working_folder(None, Path("runs/default")) == (Path("runs/default"), None)
    assert working_folder("elsewhere/run", Path("runs/default")) == (Path("elsewhere/run"), None)
