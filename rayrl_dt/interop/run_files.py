"""What a policy's run says of it, where the run folder is at hand: names of its files, and how they are read."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "CONFIG",
    "CRITIC_COPY",
    "EXPECTED",
    "FRAMES",
    "LAST",
    "LOCK",
    "MAXIMUM",
    "METRICS",
    "RECORD",
    "START_COPY",
    "find_run",
    "has_failed",
    "is_locked",
    "is_run",
    "read_json_lines",
    "read_records",
    "run_settings",
    "step_of",
]

CONFIG = "config.yaml"
"""What was chosen; there from a run's first moment on."""
RECORD = "run.json"
"""Who started it, how, and on what; there once the algorithm is built."""
METRICS = "metrics.jsonl"
"""A line per iteration."""
EXPECTED = "expected_gradient_steps"
"""In the record: those of the whole run, as far as they were known when it began."""
START_COPY, CRITIC_COPY = "start", "critic"
"""Copies of the bundles of the policy that it finetunes, and of the critic that its objective asks."""
CHECKPOINTS = "checkpoints"
"""Folder of checkpoints by their gradient steps."""
LAST, BEST = "evaluations/last.json", "evaluations/best.json"
"""The evaluations of the last and of the best checkpoint."""
MAXIMUM = "evaluations/maximum.json"
"""The evaluation of the last checkpoint at the data's best return (`rayrl-dt align` makes it)."""

LOCK = ".lock"
"""Held by the process whose run or sweep is under way in a folder."""
FRAMES = "evaluations/frames.npz"
"""Frames of episodes at three targets (`rayrl-dt eval RUN --frames` makes it)."""


# What Ray Tune keeps of a trial's failures.
_FAILURES, _AS_NOTED = "error.txt", "%Y-%m-%d_%H-%M-%S"
_FAILED_AT = re.compile(r"occurred at ([\d_-]+)\)")


def is_run(folder: Path) -> bool:
    """Return whether a run was started in a folder, even if it was lost before its first checkpoint.

    A `config.yaml` alone may be anyone's.
    """
    return (folder / CONFIG).exists() and any((folder / mark).exists() for mark in (RECORD, LOCK))


def is_locked(folder: Path) -> bool | None:
    """Return whether a process holds a folder as its own; None where that cannot be told.

    To look takes the lock for a moment, so only a folder that has one is looked at.
    """
    try:
        import fcntl

        with (folder / LOCK).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return None


def has_failed(trial: Path, reported: float) -> bool:
    """Return whether a trial of Ray Tune has failed, and has not reported since.

    Args:
        trial: its folder. Ray notes every failure there, those after which it starts a trial again, too.
        reported: seconds since 1970 at its last report; 0 without one.
    """
    try:
        noted = _FAILED_AT.findall((trial / _FAILURES).read_text())
    except FileNotFoundError:
        return False
    return not noted or time.mktime(time.strptime(noted[-1], _AS_NOTED)) >= int(reported)


def find_run(path: str | os.PathLike[str]) -> Path | None:
    """Return the run folder that `path` is, or lies in (as RUN/checkpoints/N/policy does); None if there is none."""
    given = Path(path)
    for place in (given, given.resolve()):  # first as the user wrote it
        for folder in (place, *place.parents[:3]):
            if (folder / CONFIG).is_file() and (folder / RECORD).is_file():
                return folder
    return None


def run_settings(path: str | os.PathLike[str], section: str) -> dict[str, Any]:
    """Return a section of the config of the run that `path` is, or lies in; empty if there is neither."""
    folder = find_run(path)
    if folder is None:
        return {}
    values = yaml.safe_load((folder / CONFIG).read_text())
    chosen = values.get(section) if isinstance(values, dict) else None
    return chosen if isinstance(chosen, dict) else {}


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the JSON objects of a file, one a line, and the numbers of the lines that hold none.

    A process that is killed leaves half a line, and what goes on behind it is good; no file is an empty one.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], []
    found, broken = [], []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            broken.append(line_number)
    return found, broken


def read_records(folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the records of a run, one per iteration, and the numbers of the lines that could not be read.

    A resumed run repeats the iterations after its last checkpoint; the repetition counts.
    """
    found, broken = read_json_lines(folder / METRICS)
    records: list[dict[str, Any]] = []
    for record in found:
        while step_of(record) >= 0 and records and step_of(records[-1]) >= step_of(record):
            records.pop()
        records.append(record)
    return records, broken


def step_of(record: dict[str, Any]) -> int:
    """Return the gradient step after which a record was written; -1 if it does not say."""
    step = record.get("gradient_steps")
    return step if isinstance(step, int) else -1
