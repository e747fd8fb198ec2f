"""Where runs and sweeps stand, read from their folders while they go on: a line each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.errors import UserError
from rayrl_dt.interop.run_files import (
    BEST,
    CONFIG,
    EXPECTED,
    METRICS,
    RECORD,
    has_failed,
    is_locked,
    is_run,
    read_json_lines,
    step_of,
)
from rayrl_dt.reports.run_folder import short_names

__all__ = ["HEADINGS", "Overview", "Standing"]

HEADINGS = ("run", "steps", "env steps", "loss", "last", "best", "steps/s", "written", "state")
# Of the folders below one that is named, and what a sweep's trials and a run's own parts lie in.
_DEPTH = 4
_TRIAL, _REPORTS = "params.json", "result.json"
_SWEEP, _RETURN = "sweep.yaml", "evaluation/return_mean"


@dataclass(frozen=True)
class Standing:
    """Where a run or trial stands; None for what it has not said yet.

    Attributes:
        folder: of the run or trial.
        step: gradient steps so far.
        steps: of the whole run.
        env_steps: so far, of a finetuning.
        loss: of the newest iteration.
        last: the newest evaluation.
        best: the best one.
        rate: gradient steps a second, of the newest iteration.
        written: seconds since 1970 when it last wrote.
        state: "running", "done", "stopped", "failed" or "unknown".
    """

    folder: Path
    step: int = 0
    steps: int | None = None
    env_steps: int | None = None
    loss: float | None = None
    last: Mapping[str, Any] | None = None
    best: Mapping[str, Any] | None = None
    rate: float | None = None
    written: float | None = None
    state: str = "unknown"

    def row(self, name: str, now: float) -> tuple[str, ...]:
        """Return the cells of a table under `HEADINGS`.

        Args:
            name: of the run.
            now: seconds since 1970.
        """
        of = "" if self.steps is None else f" of {max(self.steps, self.step):,}"
        return (
            name,
            f"{self.step:,}{of}",
            "" if self.env_steps is None else f"{self.env_steps:,}",
            _number(self.loss, ".4f"),
            _evaluation(self.last),
            _evaluation(self.best),
            _number(self.rate, ".1f"),
            "" if self.written is None else _ago(now - self.written),
            self.state,
        )


class Overview:
    """Reads what runs have written; files that have not changed are not read again.

    Args:
        folders: of runs, sweeps and suites, or of any that hold some.

    Raises:
        UserError: one of them does not exist.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(
                    f"there is no folder {folder}; name run folders, sweeps, or folders that hold some"
                )
        self._folders = folders
        self._read: dict[Path, tuple[tuple[int, int], Standing]] = {}

    def rows(self, now: float | None = None) -> list[tuple[str, ...]]:
        """Return a row of cells for each run and trial that there is by now."""
        found = self.standings()
        names = short_names([standing.folder.resolve() for standing in found]) if found else []
        moment = time.time() if now is None else now
        return [standing.row(name, moment) for name, standing in zip(names, found, strict=True)]

    def standings(self) -> list[Standing]:
        """Return where each run and trial stands, in the order of the folders."""
        found: dict[Path, Path] = {}
        for folder in self._folders:
            for place in _places(folder, _DEPTH):
                # A link and what it leads to are one run, as are two spellings of a path.
                found.setdefault(place.resolve(), place)
        return [self._standing(place) for place in found.values()]

    def _standing(self, folder: Path) -> Standing:
        trial = not is_run(folder)
        file = folder / (_REPORTS if trial else METRICS)
        try:
            status = file.stat()
            mark = status.st_mtime_ns, status.st_size
        except FileNotFoundError:
            mark = 0, 0
        if self._read.get(folder, (None,))[0] != mark:
            found = _of_trial(folder, mark[0]) if trial else _of_run(folder, mark[0])
            self._read[folder] = mark, found
        found = self._read[folder][1]
        return found if found.state == "done" else _with_state(found, folder, trial)


def _places(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the runs and trials at a folder or below it."""
    if is_run(folder) or (folder / _TRIAL).exists():
        yield folder
    elif depth > 0:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
            yield from _places(below, depth - 1)


def _of_run(folder: Path, written: int) -> Standing:
    records, _ = read_json_lines(folder / METRICS)
    about, best = _json(folder / RECORD), _json(folder / BEST)
    steps = about.get(EXPECTED) or _total(_yaml(folder / CONFIG))
    evaluations = [record["evaluation"] for record in records if isinstance(record.get("evaluation"), dict)]
    return _standing(folder, records, steps, evaluations, best or None, written)


def _of_trial(folder: Path, written: int) -> Standing:
    records, _ = read_json_lines(folder / _REPORTS)
    evaluations = [record["evaluation"] for record in records if isinstance(record.get("evaluation"), dict)]
    if (_yaml(folder.parent / _SWEEP).get("tune") or {}).get("metric") == _RETURN:
        # What the sweep goes by is what is told.
        evaluations = [{"return_mean": each.get("return_mean")} for each in evaluations]
    best = max(evaluations, key=_score, default=None)
    return _standing(folder, records, _total(_json(folder / _TRIAL)), evaluations, best, written)


def _standing(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    steps: int | None,
    evaluations: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    written: int,
) -> Standing:
    newest = dict(records[-1]) if records else {}
    env_steps = newest.get("env_steps")
    return Standing(
        folder=folder,
        step=max(0, step_of(newest)),
        steps=steps,
        env_steps=env_steps if isinstance(env_steps, int) else None,
        loss=_real(newest.get("loss")),
        last=evaluations[-1] if evaluations else None,
        best=best,
        rate=_real(newest.get("steps_per_s")),
        written=_real(newest.get("timestamp")) or (written / 1e9 if written else None),
        state="done" if newest.get("done") is True else "unknown",
    )


def _with_state(found: Standing, folder: Path, trial: bool) -> Standing:
    if trial and has_failed(folder, found.written or 0.0):
        return replace(found, state="failed")
    # A sweep is one process with one lock; its trials have none.
    held = is_locked(folder.parent if trial else folder)
    states = {True: "running", False: "stopped", None: "unknown"}
    return replace(found, state=states[held])


def _score(evaluation: Mapping[str, Any]) -> float:
    error, reached = _real(evaluation.get("alignment_error")), _real(evaluation.get("return_mean"))
    if error is not None:
        return -error
    return -math.inf if reached is None else reached


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    """Return an evaluation in a few letters: its alignment error E, or the return R at its only target."""
    if evaluation is None:
        return ""
    error, targets = _real(evaluation.get("alignment_error")), evaluation.get("targets")
    reached = targets[0].get("return_mean") if targets else evaluation.get("return_mean")
    if error is None or (targets and len(targets) == 1):
        return _number(_real(reached), ",.1f", "R ")
    return _number(error, ",.4g", "E ")


def _number(value: float | None, form: str, before: str = "") -> str:
    return "" if value is None else f"{before}{value:{form}}"


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _total(config: Mapping[str, Any]) -> int | None:
    training = config.get("training")
    steps = training.get("gradient_steps") if isinstance(training, dict) else None
    try:
        return None if steps is None else int(float(steps))
    except (TypeError, ValueError):
        return None


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where it is missing or being written."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
