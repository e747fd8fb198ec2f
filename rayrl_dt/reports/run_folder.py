"""Reads what a run left behind, however little: a missing or broken piece is named and stops nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.errors import UserError, one_line
from rayrl_dt.evaluation.frame_strip import FrameStrip
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.interop.run_files import (
    BEST,
    CONFIG,
    EXPECTED,
    FRAMES,
    LAST,
    MAXIMUM,
    METRICS,
    RECORD,
    read_records,
    step_of,
)

__all__ = ["RunFolder", "load_runs", "short_names"]

_PIECES = (RECORD, CONFIG, METRICS, LAST, BEST)
_SWEEP = "sweep.html"


@dataclass(frozen=True)
class RunFolder:
    """One run, as far as it could be read.

    Attributes:
        path: the folder.
        name: its name; unique among the runs loaded together.
        info: `run.json`; empty if unreadable.
        config_text: `config.yaml` as it stands; empty if unreadable.
        records: `metrics.jsonl`, one dict per training iteration.
        last: the evaluation of the last checkpoint.
        best: the evaluation of the best checkpoint, never to be shown without `last`.
        maximum: the last checkpoint asked for the data's best return, if that was evaluated.
        frames: what a policy of images saw at three targets, if that was recorded.
        problems: one line for each piece that is missing or broken.
    """

    path: Path
    name: str
    info: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    records: tuple[dict[str, Any], ...] = ()
    last: EvaluationResult | None = None
    best: EvaluationResult | None = None
    maximum: EvaluationResult | None = None
    frames: FrameStrip | None = None
    problems: tuple[str, ...] = ()

    def section(self, name: str) -> dict[str, Any]:
        """Return a nested dict of `run.json`, empty if it is not there."""
        value = self.info.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def algorithm(self) -> str:
        """The algorithm's name, or the run's if that is unknown."""
        return str(self.info.get("algorithm") or self.name)

    @property
    def method(self) -> str:
        """What the run calls itself (`name` in its config), or its algorithm."""
        return str(self.info.get("name") or self.algorithm)

    @property
    def task(self) -> tuple[str, str]:
        """(environment, data set), "unknown" where not recorded: only runs that agree are compared."""
        env = self.info.get("env") or (self.last.env if self.last else None)
        dataset = self.info.get("dataset") or (self.last.dataset if self.last else None)
        return str(env or "unknown environment"), str(dataset or "unknown data set")

    @property
    def stopped(self) -> str | None:
        """Where the run stands, such as "at step 500 of 3,000", if it has not come to its end; None otherwise."""
        return _stopped(self.info, self.records)

    @property
    def data_max(self) -> float | None:
        """The highest raw return in the data."""
        if self.last is not None and self.last.data is not None:
            return self.last.data.maximum
        value = self.section("data").get("return_max")
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def load_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """Return the runs under their shortest distinct names.

    Raises:
        UserError: there is no folder, or a folder holds nothing of a run.
    """
    paths = list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))
    if not paths:
        raise UserError("there is no run to report on; give at least one run folder")
    return [_load(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def _load(path: Path, name: str) -> RunFolder:
    if not path.is_dir():
        raise UserError(f"there is no run folder {path}; give a folder that rayrl-dt train or finetune wrote")
    if not any((path / piece).exists() for piece in _PIECES):
        for place in (path, path.parent):
            if (place / _SWEEP).exists():
                raise UserError(f"{path} is a sweep, or a trial of one; open its page, {place / _SWEEP}")
        raise UserError(
            f"{path} holds nothing of a run ({', '.join(_PIECES)}); give the folder that rayrl-dt train wrote"
        )
    problems: list[str] = []

    def piece(file: str, read: Callable[[Path], Any]) -> Any:
        try:
            return read(path / file)
        except FileNotFoundError:
            problems.append(f"{file} is missing")
        except UserError as error:
            problems.append(f"{file}{error}")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{file} cannot be read ({one_line(error)})")
        return None

    info = piece(RECORD, _mapping) or {}
    config_text = piece(CONFIG, _text) or ""
    try:
        yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        problems.append(f"{CONFIG} is not YAML ({one_line(error)}); shown as it stands")
    records = _records(path, problems)
    stopped = _stopped(info, records)
    if stopped is not None:
        problems.append(f"the run has not come to its end, {stopped}")
    last, best = piece(LAST, _evaluation), piece(BEST, _evaluation)
    maximum = piece(MAXIMUM, _evaluation) if (path / MAXIMUM).exists() else None
    frames = piece(FRAMES, FrameStrip.open) if (path / FRAMES).exists() else None
    if last is None:
        last = _last_recorded(records, problems)
    if last is None and best is not None:
        problems.append("no evaluation of the last checkpoint: the best one is not shown alone")
    return RunFolder(path, name, info, config_text, records, last, best, maximum, frames, tuple(problems))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _mapping(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f" is not JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise UserError(" is not a JSON object")
    return value


def _evaluation(path: Path) -> EvaluationResult:
    values = _mapping(path)
    try:
        return EvaluationResult.from_json(values)
    except UserError as error:
        raise UserError(f": {error}") from error


def _records(folder: Path, problems: list[str]) -> tuple[dict[str, Any], ...]:
    try:
        records, broken = read_records(folder)
    except OSError as error:
        problems.append(f"{METRICS} cannot be read ({one_line(error)})")
        return ()
    if broken:
        lines = ", ".join(str(line_number) for line_number in broken[:5]) + ("..." if len(broken) > 5 else "")
        problems.append(f"{METRICS}: {len(broken)} unreadable line(s) skipped (line {lines})")
    elif not records:
        problems.append(f"{METRICS} is {'empty' if (folder / METRICS).exists() else 'missing'}")
    return tuple(records)


def _stopped(info: dict[str, Any], records: Sequence[dict[str, Any]]) -> str | None:
    """Return where a run stands that is not done; None if it is, or if nothing says so."""
    if not records or records[-1].get("done") is not False:
        return None
    step, expected = step_of(records[-1]), info.get(EXPECTED)
    return f"at step {step:,}" + (
        f" of {expected:,}" if isinstance(expected, int) and expected > step else ""
    )


def _last_recorded(records: Sequence[dict[str, Any]], problems: list[str]) -> EvaluationResult | None:
    """Return the last evaluation of the training log: what a killed run has instead of `evaluations/last.json`."""
    for record in reversed(records):
        if isinstance(record.get("evaluation"), dict):
            try:
                result = EvaluationResult.from_json(record["evaluation"])
            except UserError:
                continue
            step = record.get("gradient_steps")
            problems.append(f"the last checkpoint's evaluation is taken from {METRICS}, gradient step {step}")
            if result.gradient_steps is None and isinstance(step, int):
                result = replace(result, gradient_steps=step)
            return result
    return None


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that are as distinct as the paths are."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]
