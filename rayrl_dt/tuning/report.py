"""The page of a sweep: every trial in a table, the median over seeds, and the metric over each parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayrl_dt.evaluation import plots
from rayrl_dt.evaluation.document import (
    MISSING,
    Block,
    Heading,
    Notice,
    Paragraph,
    Picture,
    Table,
    Tiles,
    number,
)
from rayrl_dt.evaluation.report import write_page
from rayrl_dt.tuning.plan import SEED, Plan
from rayrl_dt.tuning.results import Group, TrialResult, best_group
from rayrl_dt.tuning.space import Space

__all__ = ["write_sweep_page"]

_COLUMNS = 2
_LEGEND = (
    "Last is the metric of the last checkpoint, best that of the best one beside it. The median over the seeds of the "
    "last ones ranks the settings. Trials that a scheduler stopped count with their last report."
)


def write_sweep_page(plan: Plan, trials: Sequence[TrialResult], groups: Sequence[Group], out: Path) -> Path:
    """Writes `sweep.html` (with Markdown and PNG files) into `out`, and returns the page's path."""

    def compose(folder: Path) -> list[Block]:
        paths = [space.path for space in plan.spaces]
        blocks: list[Block] = [
            Paragraph(_describe(plan), "muted"),
            *_missing(trials),
            *_headline(plan, groups),
        ]
        if any(space.path == SEED for space in plan.spaces):
            shared = [path for path in paths if path != SEED]
            header = ["Setting", *shared, "Median", "Seeds"]
            rows = [
                [
                    str(rank),
                    *(_cell(group.parameters[path]) for path in shared),
                    number(group.median),
                    str(len(group.trials)),
                ]
                for rank, group in enumerate(groups, start=1)
            ]
            blocks += [Heading("Settings, over their seeds"), Table(header, rows)]
        blocks += [
            Heading("All trials"),
            Paragraph(_LEGEND, "muted"),
            _table(paths, [trial for group in groups for trial in group.trials]),
        ]
        shown = [space for space in plan.spaces if space.path != SEED]
        if shown and any(_finite(trial.last) for trial in trials):
            _scatter(plan, shown, trials, folder / "sweep-parameters.png")
            caption = "One point per trial, at its last report."
            blocks += [
                Heading("Metric over each parameter"),
                Picture("sweep-parameters.png", f"{plan.settings.metric} over each parameter", caption),
            ]
        return blocks

    return write_page(out, "sweep", f"Sweep {plan.name}: {len(trials)} trials", compose)


def _describe(plan: Plan) -> str:
    settings = plan.settings
    goal = "lower" if settings.best == "min" else "higher"
    parts = [
        f"{settings.metric}, {goal} is better",
        f"search {settings.search}",
        f"scheduler {settings.scheduler}",
    ]
    return " \u00b7 ".join(parts)


def _missing(trials: Sequence[TrialResult]) -> list[Block]:
    lines = [f"{trial.name}: {trial.status}" for trial in trials if trial.status != "finished"]
    return [Notice("Trials that did not finish", lines)] if lines else []


def _headline(plan: Plan, groups: Sequence[Group]) -> list[Block]:
    winner = best_group(groups)
    if winner is None:
        return [Paragraph("No trial has left a checkpoint and a report yet.")]
    group, trial = winner
    values = [(path, _cell(value), "of the best setting") for path, value in group.parameters.items()]
    remark = f"over {len(group.trials)} seeds" if len(group.trials) > 1 else "of one seed"
    best = trial.best
    exported = MISSING if best is None else number(best[1])
    return [
        Tiles(
            [
                (f"Best {plan.settings.metric}", number(group.median), f"last checkpoint, median {remark}"),
                *values,
                ("Exported policy", exported, f"trial {trial.name}, its best checkpoint"),
            ]
        )
    ]


def _table(paths: Sequence[str], trials: Sequence[TrialResult]) -> Table:
    header = ["Trial", *paths, "Last", "Best", "Gradient steps", "Seconds", "Status"]
    rows = []
    for trial in trials:
        best, steps = trial.best, trial.curve[-1][0] if trial.curve else 0
        rows.append(
            [
                trial.name,
                *(_cell(trial.parameters[path]) for path in paths),
                number(trial.last),
                number(None if best is None else best[1]),
                number(steps),
                number(trial.seconds, 1),
                trial.status,
            ]
        )
    return Table(header, rows)


def _scatter(plan: Plan, spaces: Sequence[Space], trials: Sequence[TrialResult], path: Path) -> None:
    columns = min(_COLUMNS, len(spaces))
    rows = math.ceil(len(spaces) / columns)
    figure, every = plots.canvas(rows, columns, (3.9 * columns, 3.0 * rows + 0.2))
    for axes in every[len(spaces) :]:
        axes.set_visible(False)
    for axes, space in zip(every, spaces, strict=False):
        points = [
            (trial.parameters[space.path], trial.last)
            for trial in trials
            if space.path in trial.parameters and _finite(trial.last)
        ]
        numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x, _ in points)
        # Names and truth values get places of their own, in the order of the file.
        places = list(dict.fromkeys(_cell(option) for option in space.options))
        xs = [x if numeric else places.index(_cell(x)) for x, _ in points]
        if space.kind == "loguniform":
            axes.set_xscale("log")
        axes.scatter(xs, [y for _, y in points], s=26, color=plots.COLOURS[0], alpha=0.8, linewidths=0)
        plots.style_axes(axes, space.path.rpartition(".")[2], space.path, plan.settings.metric)
        if not numeric:
            axes.set_xticks(range(len(places)), places)
    plots.finish(figure, path)


def _cell(value: Any) -> str:
    """A parameter as the file would write it; rounded to four figures."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
