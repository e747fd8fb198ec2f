"""The page of a sweep: the best trial, every trial in a table, and figures of parameters and learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayrl_dt.reports.document import (
    MISSING,
    Block,
    Code,
    Heading,
    Notice,
    Paragraph,
    Picture,
    Table,
    Tiles,
    number,
)
from rayrl_dt.reports.page import write_page
from rayrl_dt.tuning import charts
from rayrl_dt.tuning.charts import label
from rayrl_dt.tuning.results import Group, TrialResult
from rayrl_dt.tuning.sweep_spec import SEED, SweepSpec

__all__ = ["Winner", "write_sweep_page"]

_LEGEND = (
    "Last is the metric of the last checkpoint, best that of the best one beside it. The median over the seeds of the "
    "last ones ranks the settings; the best of many is high by chance, too: confirm it with other seeds before quoting "
    "it. What a scheduler stopped comes after what came to its end, compared at the report where it was stopped. A "
    "click on a column's head sorts."
)
_HOVER = "Point at a line to see its trial, and its row in the table"


@dataclass(frozen=True, eq=False)
class Winner:
    """The best trial, ready to be used.

    Attributes:
        group: the setting with the best median.
        trial: its best one.
        bundle: the policy.
        command: that runs the trial on its own.
    """

    group: Group
    trial: TrialResult
    bundle: Path
    command: str


def write_sweep_page(
    spec: SweepSpec, trials: Sequence[TrialResult], groups: Sequence[Group], winner: Winner | None, out: Path
) -> Path:
    """Write `sweep.html`, which holds everything, with Markdown and SVG files beside it; return its path.

    The groups, which hold the trials, come with the best first.
    """
    blocks = [
        Paragraph(_describe(spec), "muted"),
        *_missing(spec, trials),
        *_headline(spec, groups, winner),
        *_charts(spec, trials, groups),
        *_settings(spec, groups),
        Heading("All trials"),
        Paragraph(_LEGEND, "muted"),
        _table(spec, [trial for group in groups for trial in group.trials]),
    ]
    return write_page(out, "sweep", f"Sweep {spec.name}: {len(trials)} trials", blocks)


def _describe(spec: SweepSpec) -> str:
    settings = spec.settings
    goal = f"{settings.metric}, {'lower' if settings.best == 'min' else 'higher'} is better"
    parts = [goal, f"search {settings.search}", f"scheduler {settings.scheduler}"]
    return " \u00b7 ".join(parts if spec.run is None else [*parts, f"evaluations of {spec.run}"])


def _missing(spec: SweepSpec, trials: Sequence[TrialResult]) -> list[Block]:
    lines = [f"{trial.name}: {trial.status}" for trial in trials if trial.status != "finished"]
    if len(trials) < spec.expected:
        lines.append(f"{spec.expected - len(trials)} of {spec.expected} trials have not begun")
    return [Notice("Trials that did not finish", lines)] if lines else []


def _headline(spec: SweepSpec, groups: Sequence[Group], winner: Winner | None) -> list[Block]:
    if winner is None:
        return [Paragraph("No trial has left a checkpoint and a report yet.")]
    group, trial = winner.group, winner.trial
    remark = f"over {group.seeds} seeds" if len(group.trials) > 1 else "of one seed"
    what = f"median {remark}" if spec.run is not None else f"last checkpoint, median {remark}"
    tiles = [(f"Best {spec.settings.metric}", number(group.median), what)]
    # The tables have the whole path.
    tiles += [
        (path.rpartition(".")[2], label(value), "of the best setting")
        for path, value in group.parameters.items()
    ]
    if spec.run is None:
        tiles.append(("Exported policy", number(trial.best[1]), f"trial {trial.name}, its best checkpoint"))
    else:
        alone = [member.unrefined for member in group.trials if member.unrefined is not None]
        control = number(statistics.median(alone)) if alone else MISSING
        tiles.append(("Without", control, f"the same episodes, median {remark}"))
    return [
        Paragraph(_answer(spec, groups, group)),
        Tiles(tiles),
        Paragraph(f"Best policy: {winner.bundle}"),
        Paragraph(f"Trial {trial.name} on its own:"),
        Code(winner.command),
    ]


def _answer(spec: SweepSpec, groups: Sequence[Group], best: Group) -> str:
    medians = [group.median for group in groups if group.median is not None]
    what = charts.setting(best.parameters)
    found = f"{spec.settings.metric} {number(best.median)}"
    if len(medians) < 2:
        return f"One setting has come to a result: {what or 'the file as it is'}, {found}."
    as_far = [group.median for group in groups if group.median is not None and group.rung == best.rung]
    of = "" if len(as_far) == len(medians) else f" of the {len(as_far)} that came as far"
    worst = (max if spec.settings.best == "min" else min)(as_far)
    return f"Of {len(medians)} settings the best is {what}: {found}; the worst{of} has {number(worst)}."


def _charts(spec: SweepSpec, trials: Sequence[TrialResult], groups: Sequence[Group]) -> list[Block]:
    shown = [space for space in spec.spaces if space.path != SEED]
    reported = [trial for trial in trials if trial.last is not None and math.isfinite(trial.last)]
    metric, titles = spec.settings.metric, charts.titles(trials)
    blocks: list[Block] = []
    if shown and reported:
        blocks += [
            Heading("Parameters and metric"),
            Picture(
                "sweep-parallel.svg",
                charts.parallel_coordinates(shown, reported, metric),
                "Parallel coordinates: a line per trial through its parameters to its metric",
                f"One line per trial, from its parameters to its last {metric}; darker is better. {_HOVER}.",
                titles,
            ),
            Picture(
                "sweep-parameters.svg",
                charts.scatter(shown, reported, metric),
                f"{metric} over each parameter",
                "One point per trial.",
                titles,
            ),
        ]
    if any(len(trial.curve) > 1 for trial in trials):
        figure, alt = charts.curves(groups, metric), f"{metric} over gradient steps"
        caption = f"One line per trial; the seeds of a setting share a color. {_HOVER}."
        blocks += [Heading("Learning curves"), Picture("sweep-curves.svg", figure, alt, caption, titles)]
    return blocks


def _settings(spec: SweepSpec, groups: Sequence[Group]) -> list[Block]:
    if not any(space.path == SEED for space in spec.spaces):
        return []
    shared = [space.path for space in spec.spaces if space.path != SEED]
    rows = [
        [
            str(rank),
            *(label(group.parameters[path]) for path in shared),
            number(group.median),
            group.seeds,
        ]
        for rank, group in enumerate(groups, start=1)
    ]
    header = ["Setting", *shared, "Median", "Seeds"]
    return [Heading("Settings, over their seeds"), Table(header, rows, "sortable")]


def _table(spec: SweepSpec, trials: Sequence[TrialResult]) -> Table:
    paths = [space.path for space in spec.spaces]
    header = ["Trial", *paths, "Last", "Best", "Gradient steps", "Seconds", "Status"]
    rows = [
        [
            trial.name,
            *(label(trial.parameters[path]) for path in paths),
            number(trial.last),
            number(trial.best[1]),
            number(trial.gradient_steps),
            number(trial.seconds, 1),
            trial.status,
        ]
        for trial in trials
    ]
    return Table(header, rows, "sortable")
