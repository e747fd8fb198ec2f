"""What came of a sweep, read from its folder without Ray, so that a killed one can be looked at too."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.run_files import has_failed, read_json_lines
from rayrl_dt.tuning.space import value_at
from rayrl_dt.tuning.sweep_spec import SEED, SweepSpec

__all__ = ["ENDED", "SETTINGS", "Group", "TrialResult", "best_group", "group_trials", "read_trials"]

ENDED = "ended"
"""In a report: whether the trial came to its own end."""
SETTINGS = "params.json"
"""In a trial's folder: its config."""
_CHOOSE: dict[str, Any] = {"min": min, "max": max}


@dataclass(frozen=True, eq=False)
class TrialResult:
    """One trial as its folder tells it.

    Attributes:
        name: Ray's identifier, which is its folder's name.
        folder: with checkpoints, `result.json` and TensorBoard events.
        parameters: value of each searched key; that of the last report where PBT has changed it.
        status: "finished" (by itself or by the scheduler), "failed" or "unfinished".
        curve: (gradient steps, metric) of each report.
        steps: (when it ended, how long it took) of each report, restarts included; s, as of `time.time`.
        mode: "min" or "max".
        evaluated: the run that a trial evaluated; None where it trained.
        unrefined: the metric of that run without its action gradient, in the same episodes.
        whole: whether it came to its own end; no scheduler or fault stopped it before.
    """

    name: str
    folder: Path
    parameters: dict[str, Any]
    status: str
    curve: tuple[tuple[int, float], ...]
    steps: tuple[tuple[float, float], ...]
    mode: str
    evaluated: Path | None = None
    unrefined: float | None = None
    whole: bool = True

    @property
    def seconds(self) -> float:
        """Time spent in its steps."""
        return self.seconds_since(-math.inf)

    def seconds_since(self, moment: float) -> float:
        """Return the time spent in steps that ended after `moment` (as of `time.time`)."""
        return sum(seconds for ended, seconds in self.steps if ended >= moment)

    @property
    def last(self) -> float | None:
        """The metric at the last report."""
        return self.curve[-1][1] if self.curve else None

    @property
    def rung(self) -> tuple[bool, int]:
        """Where it ended, which sorts trials: those that are whole before others, and these by their reports."""
        return not self.whole, 0 if self.whole else -len(self.curve)

    @property
    def gradient_steps(self) -> int:
        """Those behind the last report."""
        return self.curve[-1][0] if self.curve else 0

    @property
    def best(self) -> tuple[int | None, float | None]:
        """Gradient steps and metric of the best report, the earliest of equal ones; (None, None) without a report."""
        finite = [point for point in self.curve if math.isfinite(point[1])]
        best: tuple[int | None, float | None]
        best = _CHOOSE[self.mode](finite, key=lambda point: point[1], default=(None, None))
        return best

    @property
    def best_checkpoint(self) -> Path | None:
        """The whole checkpoint with the best metric among those that are kept; the run that was only evaluated."""
        if self.evaluated is not None:
            return self.evaluated if self.best[1] is not None else None
        metric = dict(self.curve)
        found: dict[int, Path] = {}
        for folder in sorted(self.folder.glob("checkpoint_*")):
            try:
                steps = Bundle.open(folder).gradient_steps
            except UserError:
                continue  # what a killed process was writing
            if steps in metric and math.isfinite(metric[steps]):
                # PBT goes back to another trial's weights, and may come to a step again: the metric is of the later.
                found[steps] = folder
        best = _CHOOSE[self.mode](found, key=lambda steps: metric[steps], default=None)
        return None if best is None else found[best]

    def to_json(self) -> dict[str, Any]:
        """Return a row of the results table; checkpoints of the sweep are told relative to its folder."""
        checkpoint = self.best_checkpoint
        if checkpoint is not None and self.evaluated is None:
            checkpoint = checkpoint.relative_to(self.folder.parent)
        return {
            "trial": self.name,
            "status": self.status,
            "parameters": self.parameters,
            "last": self.last,
            "best": self.best[1],
            "best_gradient_steps": self.best[0],
            "gradient_steps": self.gradient_steps,
            "reports": len(self.curve),
            "seconds": self.seconds,
            "unrefined": self.unrefined,
            "checkpoint": None if checkpoint is None else str(checkpoint),
        }


@dataclass(frozen=True, eq=False)
class Group:
    """Trials that differ in nothing but their seed.

    Attributes:
        parameters: those that they share.
        median: of the last metrics of its whole trials, failed ones and those without a number counted as worse than
            any; where half of the trials stopped early, of the metrics at the report where the middle one was. None
            where none has reported, or where the middle one failed or has no number.
        trials: one per seed.
        rung: of the middle one.
        counted: how many trials the median is over.
    """

    parameters: dict[str, Any]
    median: float | None
    trials: tuple[TrialResult, ...]
    rung: tuple[bool, int]
    counted: int

    @property
    def seeds(self) -> str:
        """How many seeds the median is over, as in "3", or "2 of 3" where one has nothing to tell yet."""
        every = len(self.trials)
        return str(every) if self.counted == every else f"{self.counted} of {every}"

    @classmethod
    def of(cls, parameters: dict[str, Any], trials: Sequence[TrialResult]) -> Group:
        """Return a group with its median: what was stopped early is compared where all of them were."""
        reported = [trial for trial in trials if trial.curve]
        rung = sorted(trial.rung for trial in reported)[len(reported) // 2] if reported else (True, 0)
        stopped, reports = rung
        if stopped:
            metrics = [trial.curve[-reports - 1][1] for trial in reported if len(trial.curve) >= -reports]
            failed = 0
        else:
            metrics = [trial.curve[-1][1] for trial in reported if trial.whole]
            failed = sum(trial.status == "failed" for trial in trials)
        worst = -math.inf if trials[0].mode == "max" else math.inf
        counted = [metric if math.isfinite(metric) else worst for metric in metrics] + failed * [worst]
        median = statistics.median(counted) if counted else worst
        return cls(parameters, median if math.isfinite(median) else None, tuple(trials), rung, len(counted))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        names = [trial.name for trial in self.trials]
        return {"parameters": self.parameters, "median": self.median, "trials": names}


def read_trials(folder: Path, spec: SweepSpec) -> list[TrialResult]:
    """Return the trials of a sweep's folder, by name; one whose settings are being written is not there yet."""
    found = []
    for path in sorted(folder.glob(f"*/{SETTINGS}")):
        with suppress(json.JSONDecodeError):
            found.append(_read(path.parent, spec))
    return found


def group_trials(trials: Sequence[TrialResult], mode: str) -> list[Group]:
    """Return the trials with equal parameters but for the seed, the best median first.

    Those that were stopped before their end come after those that were not, and by how far they came: a metric after
    few steps says nothing of the one after many. Trials that have not reported come last.
    """
    together: dict[str, list[TrialResult]] = {}
    for trial in trials:
        shared = {path: value for path, value in trial.parameters.items() if path != SEED}
        together.setdefault(json.dumps(shared, sort_keys=True), []).append(trial)
    groups = [Group.of(json.loads(key), members) for key, members in together.items()]
    sign = 1 if mode == "min" else -1
    return sorted(
        groups,
        key=lambda group: (
            group.median is None,
            *group.rung,
            0.0 if group.median is None else sign * group.median,
        ),
    )


def best_group(groups: Sequence[Group]) -> tuple[Group, TrialResult] | None:
    """Return the group with the best median that left a checkpoint, and its trial nearest to the top.

    The median over seeds decides, not a lucky seed; within the group the trial with the best last metric does.
    """
    for group in groups:
        sign = 1 if group.trials[0].mode == "min" else -1
        reported = [
            ((*trial.rung, sign * trial.last if math.isfinite(trial.last) else math.inf), trial)
            for trial in group.trials
            if trial.last is not None
        ]
        for _, trial in sorted(reported, key=lambda item: item[0]):
            if group.median is not None and trial.best_checkpoint is not None:
                return group, trial
    return None


def _read(folder: Path, spec: SweepSpec) -> TrialResult:
    records, _ = read_json_lines(folder / "result.json")
    config = records[-1].get("config") if records else None
    if config is None:
        config = json.loads((folder / SETTINGS).read_text())
    figure = spec.settings.metric.rpartition("/")[2]
    curve: dict[int, float] = {}
    steps = []
    for record in records:
        metric = value_at(record, f"evaluation.{figure}")
        # After a restart a report may come twice: the later one is of the weights that went on.
        curve[int(record["gradient_steps"])] = math.nan if metric is None else float(metric)
        steps.append((float(record.get("timestamp", 0.0)), float(record.get("time_this_iter_s", 0.0))))
    if records and records[-1].get("done"):
        status = "finished"
    else:
        status = "failed" if has_failed(folder, steps[-1][0] if steps else 0.0) else "unfinished"
    return TrialResult(
        name=folder.name,
        folder=folder,
        parameters={space.path: value_at(config, space.path) for space in spec.spaces},
        status=status,
        curve=tuple(sorted(curve.items())),
        steps=tuple(steps),
        mode=spec.settings.best,
        evaluated=None if spec.run is None else Path(spec.run),
        unrefined=value_at(records[-1], f"unrefined.{figure}") if records else None,
        # Ray Tune marks what a scheduler stops as done, too.
        whole=status == "finished" and bool(records[-1].get(ENDED, True)),
    )
