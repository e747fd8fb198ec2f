"""What a sweep leaves: a results table, a page and the best policy."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from rayrl_dt.interop.bundle import BUNDLE, Bundle
from rayrl_dt.runs.records import write_json
from rayrl_dt.tuning.refinement_job import read_refinement_job
from rayrl_dt.tuning.report import Winner, write_sweep_page
from rayrl_dt.tuning.results import TrialResult, best_group, group_trials, read_trials
from rayrl_dt.tuning.sweep_spec import SweepSpec

__all__ = ["SWEEP", "SweepOutcome", "conclude"]

SWEEP = "sweep.yaml"
"""The sweep's file in its folder."""
_RESULTS = "results.json"


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
        cost: of this call of `sweep`: `wall_seconds` from the first trial's scheduling to the last one's end, and
            `trial_seconds` inside the trials' steps meanwhile, added up; None where only the folder was read.
    """

    page: Path
    table: Path
    trials: tuple[TrialResult, ...]
    expected: int
    bundle: Path | None
    command: str | None
    cost: dict[str, float] | None

    @property
    def finished(self) -> bool:
        """Whether each trial came to its end."""
        return sum(trial.status == "finished" for trial in self.trials) >= self.expected


def conclude(spec: SweepSpec, out: Path, *, wall: tuple[float, float] | None = None) -> SweepOutcome:
    """Write the results table, the page and the best policy from what the sweep's folder holds.

    `wall` is when the trials were scheduled and when they had ended, as of `time.time`; None if none were.
    """
    trials = read_trials(out, spec)
    groups = group_trials(trials, spec.settings.best)
    cost = None
    if wall is not None:
        begin, end = wall
        spent = sum(trial.seconds_since(begin) for trial in trials)
        cost = {"wall_seconds": end - begin, "trial_seconds": spent}
    best, winner = None, None
    if (found := best_group(groups)) is not None:
        group, trial = found
        assert trial.best_checkpoint is not None
        policy = Bundle.open(trial.best_checkpoint)
        bundle = policy.copy_to(out / BUNDLE) if spec.run is None else policy.folder
        winner = Winner(group, trial, bundle, _command(spec, trial, out))
        outcome = {"median": group.median, "bundle": str(bundle), "command": winner.command}
        best = trial.to_json() | outcome
    table = {
        "name": spec.name,
        "metric": spec.settings.metric,
        "mode": spec.settings.best,
        "cost": cost,
        "best": best,
        "settings": [group.to_json() for group in groups],
        "trials": [trial.to_json() for trial in trials],
    }
    write_json(out / _RESULTS, table)
    return SweepOutcome(
        page=write_sweep_page(spec, trials, groups, winner, out),
        table=out / _RESULTS,
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
    # Text that YAML reads as it stands needs no quotes.
    values = {
        path: value if isinstance(value, str) else json.dumps(value)
        for path, value in trial.parameters.items()
    }
    changes = [f"--set {shlex.quote(f'{path}={value}')}" for path, value in values.items()]
    return " ".join(["rayrl-dt train", shlex.quote(str(out / SWEEP)), *changes])
