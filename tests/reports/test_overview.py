"""`rayrl-dt watch`: tables of real runs and sweeps, while they go on and afterwards."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_runs import values

from rayrl_dt.cli import main
from rayrl_dt.errors import UserError
from rayrl_dt.reports.overview import HEADINGS, Overview
from rayrl_dt.runs import loop
from rayrl_dt.runs.inputs import locked


def every_second(dataset: str, **training: Any) -> dict[str, Any]:
    """A config of seconds: three iterations, the last two with an evaluation."""
    sparse = {"target_returns": "dataset:3", "episodes_per_target": 1, "evaluation_interval": 2}
    return {**values(dataset, **training), "evaluation": sparse}


class Watching:
    """An observer that looks at the table after each iteration, and stops the run after some."""

    def __init__(self, folder: Path, iterations: int) -> None:
        self.overview = Overview([folder])
        self.left = iterations
        self.seen: list[dict[str, str]] = []

    def started(self, algorithm: Any) -> None:
        pass

    def stepped(self, gradient_step: int, loss: float) -> None:
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def iterated(self, record: Mapping[str, Any]) -> None:
        self.left -= 1
        (row,) = self.overview.rows()
        self.seen.append(dict(zip(HEADINGS, row, strict=True)))


@pytest.fixture(scope="module")
def folder(
    ray_session: None, pendulum_data: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, str]]]:
    """A finished run, a stopped one, and what the table said while the first went on."""
    runs = tmp_path_factory.mktemp("runs")
    (runs / "whole").mkdir()
    watching = Watching(runs, 10**6)
    loop.train(every_second(pendulum_data), runs / "whole", observer=watching)
    loop.train(every_second(pendulum_data), runs / "short", observer=Watching(runs / "whole", 1))
    return runs, watching.seen


@pytest.mark.ray
def test_a_run_is_followed_while_it_goes_on(folder: tuple[Path, list[dict[str, str]]]) -> None:
    runs, seen = folder
    assert [row["steps"] for row in seen] == ["4 of 12", "8 of 12", "12 of 12"]
    assert [row["state"] for row in seen] == ["running", "running", "done"]
    assert {row["run"] for row in seen} == {"whole"}
    records = [json.loads(line) for line in (runs / "whole" / "metrics.jsonl").read_text().splitlines()]
    for row, record in zip(seen, records, strict=True):
        assert row["loss"] == f"{record['loss']:.4f}" and row["steps/s"] == f"{record['steps_per_s']:.1f}"
        assert re.fullmatch(r"\d+ s ago", row["written"]) and row["env steps"] == ""
    errors = [record["evaluation"]["alignment_error"] for record in records if "evaluation" in record]
    assert [row["last"] for row in seen] == ["", *(f"E {error:,.4g}" for error in errors)]
    assert seen[-1]["best"] == f"E {min(errors):,.4g}"


@pytest.mark.ray
def test_a_stopped_run_is_told_from_one_that_goes_on(folder: tuple[Path, list[dict[str, str]]]) -> None:
    runs, _ = folder
    overview = Overview([runs])
    short, whole = overview.rows()
    # It was stopped within its second iteration.
    assert (short[0], short[1], short[-1]) == ("short", "5 of 12", "stopped")
    assert (whole[0], whole[1], whole[-1]) == ("whole", "12 of 12", "done")
    with locked(runs / "short", what="run"):
        assert overview.rows()[0][-1] == "running"
    assert overview.rows()[0][-1] == "stopped"


@pytest.mark.ray
def test_a_run_that_is_reached_by_two_paths_has_one_row(
    folder: tuple[Path, list[dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, _ = folder
    here = tmp_path / "runs"
    shutil.copytree(runs, here)
    once = Overview([here]).rows()
    (here / "latest").symlink_to(sorted(path for path in here.iterdir() if path.is_dir())[0])
    monkeypatch.chdir(tmp_path)
    twice = Overview([Path("runs"), here]).rows()
    assert len(once) == len(twice) and {row[0] for row in once} == {row[0] for row in twice}


def test_half_a_line_and_missing_files_are_no_errors(
    folder: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder[0] / "whole", run)
    overview = Overview([run])
    assert overview.rows()[0][1] == "12 of 12"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:50])
    assert (overview.rows()[0][1], overview.rows()[0][-1]) == ("4 of 12", "stopped")
    for name in ("metrics.jsonl", "run.json"):
        (run / name).unlink()
    assert overview.rows()[0][:4] == ("run", "0 of 12", "", "")


@pytest.mark.ray
@pytest.mark.slow
def test_trials_of_a_sweep_have_a_row_each(ray_session: None, pendulum_data: str, tmp_path: Path) -> None:
    from rayrl_dt.tuning.sweep import run_sweep
    from rayrl_dt.tuning.sweep_spec import read_sweep

    config = {**every_second(pendulum_data), "tune": {"seeds": [0, 1]}}
    run_sweep(read_sweep(config, default_name="test"), tmp_path / "sweep")
    rows = Overview([tmp_path]).rows()
    assert [row[1] for row in rows] == ["12 of 12"] * 2 and [row[-1] for row in rows] == ["done"] * 2
    assert all(row[4].startswith("E ") and row[5].startswith("E ") for row in rows)
    (trial, *_) = sorted((tmp_path / "sweep").glob("*/result.json"))
    text = trial.read_text().replace('"done": true', '"done": false')
    trial.write_text(text)
    (trial.parent / "error.txt").write_text("it died")
    assert sorted(row[-1] for row in Overview([tmp_path]).rows()) == ["done", "failed"]


def test_trials_are_told_by_what_their_sweep_goes_by(tmp_path: Path) -> None:
    trial = tmp_path / "sweep" / "a"
    trial.mkdir(parents=True)
    (trial / "params.json").write_text("{}")
    pairs = ((90.0, 10.0), (150.0, 50.0), (95.0, 5.0))
    lines = [
        {"gradient_steps": n, "evaluation": {"return_mean": r, "alignment_error": e}}
        for n, (r, e) in enumerate(pairs)
    ]
    (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Overview([tmp_path]).rows()[0][4:6] == ("E 5", "E 5")
    (trial.parent / "sweep.yaml").write_text("tune: {metric: evaluation/return_mean}")
    assert Overview([tmp_path]).rows()[0][4:6] == ("R 95.0", "R 150.0")


def watch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rayrl-dt", "watch", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.ray
def test_where_nobody_looks_the_table_comes_once(
    folder: tuple[Path, list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = watch(monkeypatch, capsys, str(folder[0]))
    assert status == 0 and "12 of 12" in out and "stopped" in out and "2 runs" in out
    assert out.rstrip().endswith(f"next: rayrl-dt report {folder[0] / 'short'}")
    assert "env steps" not in out, "what nobody fills takes no room"


def test_folders_that_are_not_there_or_hold_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = watch(monkeypatch, capsys, str(tmp_path / "no"))
    assert status == 2 and "there is no folder" in error and len(error.strip().splitlines()) == 1
    status, _, error = watch(monkeypatch, capsys, str(tmp_path), "--seconds", "0")
    assert status == 2 and "--seconds is 0" in error
    status, out, _ = watch(monkeypatch, capsys, str(tmp_path), "--once")
    assert status == 0 and "0 runs" in out
    with pytest.raises(UserError, match="there is no folder"):
        Overview([tmp_path / "no"])


@pytest.mark.ray
def test_in_a_terminal_the_table_refreshes_until_it_is_interrupted(
    folder: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder[0] / "whole", run)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole.splitlines(keepends=True)[0])
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rayrl_dt", "watch", str(run), "--seconds", "0.1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    shown = ""

    def until(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 120
        while text not in shown:
            assert time.monotonic() < end, shown
            shown += os.read(ours, 4096).decode(errors="replace")

    try:
        until("4 of 12")
        (run / "metrics.jsonl").write_text(whole)
        until("12 of 12")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
