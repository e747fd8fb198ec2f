"""What a sweep leaves: a results table, a page and the best policy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl_dt.interop.bundle import BUNDLE, Bundle
from rayrl_dt.runs.records import write_json
from rayrl_dt.tuning.refinement_job import read_refinement_job
from rayrl_dt.tuning.report import Winner, write_sweep_page
from rayrl_dt.tuning.results import TrialResult, best_group, group_trials, read_trials
from rayrl_dt.tuning.sweep_spec import SweepSpec

__all__ = ["SWEEP", "Cost", "SweepOutcome", "conclude"]

SWEEP = "sweep.yaml"
"""The sweep's file in its folder."""
_RESULTS = "results.json"


@dataclass(frozen=True)
class Cost:
    """The time of one call of `sweep`; a sweep that was resumed had several.

    Attributes:
        wall_seconds: from the first trial's scheduling to the last one's end.
        trial_seconds: spent inside the trials' steps meanwhile, added up over trials that ran side by side.
    """

    wall_seconds: float
    trial_seconds: float

    def to_json(self) -> dict[str, float]:
        """Return it as JSON values."""
        return {"wall_seconds": self.wall_seconds, "trial_seconds": self.trial_seconds}


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """How a sweep ended.

    Attributes:
        page: the HTML page.
        table: the results as JSON.
        trials: all of them.
        expected: how many trials there are to be.
        bundle: the best policy, or the one that was evaluated; None if no trial has left a checkpoint.
        command: that runs the best trial on its own; None as `bundle`.
        cost: None where only the folder was read.
    """

    page: Path
    table: Path
    trials: tuple[TrialResult, ...]
    expected: int
    bundle: Path | None
    command: str | None
    cost: Cost | None

    @property
    def finished(self) -> bool:
        """Whether each trial came to its end."""
        done = sum(trial.status == "finished" for trial in self.trials)
        return done >= self.expected


def conclude(spec: SweepSpec, out: Path, *, wall: tuple[float, float] | None = None) -> SweepOutcome:
    """Write the results table, the page and the best policy from what the folder holds.

    Args:
        spec: of the sweep.
        out: its folder.
        wall: when the trials were scheduled and when they had ended, as of `time.time`; None if none were.
    """
    trials = read_trials(out, spec)
    groups = group_trials(trials, spec.settings.best)
    cost = None
    if wall is not None:
        begin, end = wall
        cost = Cost(end - begin, sum(trial.seconds_since(begin) for trial in trials))
    best: dict[str, Any] | None = None
    winner = None
    found = best_group(groups)
    if found is not None:
        group, trial = found
        checkpoint = trial.best_checkpoint
        assert checkpoint is not None
        found_bundle = Bundle.open(checkpoint)
        bundle = found_bundle.copy_to(out / BUNDLE) if spec.run is None else found_bundle.folder
        winner = Winner(group, trial, bundle, _command(spec, trial, out))
        best = {
            **trial.to_json(),
            "median": group.median,
            "bundle": str(bundle),
            "command": winner.command,
        }
    settings = spec.settings
    table = {
        "name": spec.name,
        "metric": settings.metric,
        "mode": settings.best,
        "cost": None if cost is None else cost.to_json(),
        "best": best,
        "settings": [group.to_json() for group in groups],
        "trials": [trial.to_json() for trial in trials],
    }
    path = out / _RESULTS
    write_json(path, table)
    page = write_sweep_page(spec, trials, groups, winner, out)
    return SweepOutcome(
        page=page,
        table=path,
        trials=tuple(trials),
        expected=spec.expected,
        bundle=None if winner is None else winner.bundle,
        command=None if winner is None else winner.command,
        cost=cost,
    )


def _command(spec: SweepSpec, trial: TrialResult, out: Path) -> str:
    """Return a single run with the trial's values; after PBT with its last ones from the start."""
    if spec.run is not None:
        return read_refinement_job(spec.at(trial.parameters)).command
    changes = [f"--set {shlex.quote(f'{path}={_yaml(value)}')}" for path, value in trial.parameters.items()]
    return " ".join(["rayrl-dt train", shlex.quote(str(out / SWEEP)), *changes])


def _yaml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (Mapping, list, bool)) or value is None else str(value)
