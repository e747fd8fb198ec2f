"""Runs whose folder is copied to storage elsewhere, and that go on where the machine was lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import StopAt, values

from rayrl_dt.errors import UserError
from rayrl_dt.runs import loop as runs
from rayrl_dt.runs import remote_copy
from rayrl_dt.runs.remote_copy import RemoteCopy, storage, working_folder


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    assert there == {name: data for name, data in files(first).items() if name not in (".lock", ".copy")}
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
    assert files(tmp_path / "again") == files(run)


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
