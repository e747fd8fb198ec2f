"""Several runs side by side: every seed, every target, and no figure of different tasks in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rayrl_dt.evaluation import plots
from rayrl_dt.evaluation.alignment import EvaluationResult
from rayrl_dt.evaluation.document import MISSING, Block, Heading, Paragraph, Picture, Table, decimals, number
from rayrl_dt.evaluation.findings import LEGEND, METRICS, compare, metrics, places_of
from rayrl_dt.evaluation.run_folder import RunFolder, group_seeds
from rayrl_dt.evaluation.statistics import interquartile_mean, stratified_bootstrap

__all__ = ["compare_runs"]


def compare_runs(runs: Sequence[RunFolder], folder: Path) -> list[Block]:
    """Returns one section per task, with its plots written into `folder`.

    Runs of different environments or data sets share no axis and no table.
    """
    tasks: dict[tuple[str, str], list[RunFolder]] = {}
    for run in runs:
        tasks.setdefault(run.task, []).append(run)
    blocks: list[Block] = []
    for index, ((environment, dataset), members) in enumerate(tasks.items(), start=1):
        groups = group_seeds(members)
        evaluated = {
            label: results
            for label, group in groups.items()
            if (results := [run.last for run in group if run.last is not None])
        }
        blocks.append(Heading(f"{environment} from {dataset}" if len(tasks) > 1 else "All runs"))
        if len(tasks) == 1:
            blocks.insert(0, Paragraph(f"{environment} \u00b7 {dataset}", "muted"))
        blocks.append(Table(["Run", "Seed", *METRICS, "Best E / span"], [_row(run) for run in members]))
        sentences = compare(evaluated)
        blocks += [Paragraph(" ".join(sentences))] if sentences else []
        if index == 1:
            blocks.append(Paragraph(f"Figures are of the last checkpoint. {LEGEND}", "muted"))
        if evaluated:
            name, maximum = f"comparison-{index}-desired-vs-achieved.png", _common_maximum(members)
            plots.desired_vs_achieved(evaluated, folder / name, data_max=maximum)
            caption = (
                "Bars: 95% over the episodes of one seed. Bands: lowest to highest seed around their mean."
            )
            blocks.append(Picture(name, "Achieved against desired return of all runs", caption))
        blocks += _over_seeds(evaluated) + _target_grid(members)
        if any(run.records for run in members):
            name = f"comparison-{index}-learning-curve.png"
            curves = {run.name: run.records for run in members if run.records}
            plots.learning_curve(curves, folder / name, data_max=_common_maximum(members))
            blocks.append(Picture(name, "Learning curves of all runs over gradient steps"))
    return blocks


def _row(run: RunFolder) -> list[str]:
    best = number(run.best.alignment_error_relative, 3) if run.last and run.best else MISSING
    cells = metrics(run.last) if run.last else [MISSING] * len(METRICS)
    return [run.name, str(run.info.get("seed", MISSING)), *cells, best]


def _over_seeds(groups: Mapping[str, Sequence[EvaluationResult]]) -> list[Block]:
    rows = []
    for label, results in groups.items():
        errors = [error for result in results if (error := result.alignment_error_relative) is not None]
        if len(errors) < 2:
            continue
        iqm = stratified_bootstrap([errors], interquartile_mean)
        rows.append(
            [
                label,
                number(len(errors)),
                f"{np.mean(errors):.3f} \u00b1 {np.std(errors, ddof=1):.3f}",
                f"{min(errors):.3f} to {max(errors):.3f}",
                # The middle half of fewer than four values is all of them.
                f"{iqm.estimate:.3f} [{iqm.low:.3f}, {iqm.high:.3f}]" if len(errors) > 3 else MISSING,
            ]
        )
    header = ["E / span over seeds", "Seeds", "Mean \u00b1 std", "Range", "IQM [95%]"]
    return [Table(header, rows)] if rows else []


def _target_grid(runs: Sequence[RunFolder]) -> list[Block]:
    """Mean achieved return, one row per run and one column per target, for each set of targets in use."""
    grids: dict[tuple[float, ...], list[list[str]]] = {}
    for run in runs:
        if run.last is not None:
            items = sorted(run.last.targets, key=lambda item: item.target)
            row = [run.name, *(number(item.return_mean, places_of(run.last)) for item in items)]
            grids.setdefault(tuple(item.target for item in items), []).append(row)
    blocks: list[Block] = [
        Table(["Achieved at target", *(number(target, decimals(targets)) for target in targets)], rows)
        for targets, rows in grids.items()
    ]
    return [Heading("Every target, every seed", 3), *blocks] if blocks else []


def _common_maximum(runs: Sequence[RunFolder]) -> float | None:
    return max((run.data_max for run in runs if run.data_max is not None), default=None)
