"""Several runs side by side: every seed, every target, and no figure of different tasks in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rayrl_dt.evaluation.reduction import BASELINE, baseline_of, error_reduction, method_of
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.statistics import Interval, interquartile_mean, stratified_bootstrap
from rayrl_dt.reports import plots
from rayrl_dt.reports.document import (
    MISSING,
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    decimals,
    number,
    percent,
)
from rayrl_dt.reports.evaluation_text import LEGEND, METRICS, compare, metrics, places_of
from rayrl_dt.reports.learning_curve import learning_curve
from rayrl_dt.reports.run_folder import RunFolder
from rayrl_dt.reports.seeds import group_seeds

__all__ = ["compare_runs", "reductions"]

_BASELINE_LEGEND = (
    f"Reduction is 1 - E / E({BASELINE}), both means over seeds; the interval resamples seeds and their "
    "episodes; those that begin alike are drawn together for all targets."
)


def compare_runs(runs: Sequence[RunFolder]) -> list[Block]:
    """Return one section per task: runs of different environments or data sets share no axis and no table."""
    tasks: dict[tuple[str, str], list[RunFolder]] = {}
    for run in runs:
        tasks.setdefault(run.task, []).append(run)
    blocks: list[Block] = []
    for index, ((environment, dataset), members) in enumerate(tasks.items(), start=1):
        evaluated = _evaluated(members)
        blocks.append(Heading(f"{environment} from {dataset}" if len(tasks) > 1 else "All runs"))
        if len(tasks) == 1:
            blocks.insert(0, Paragraph(f"{environment} \u00b7 {dataset}", "muted"))
        sentences = compare(evaluated)
        blocks += [Paragraph(" ".join(sentences))] if sentences else []
        blocks.append(_runs_table(members))
        if index == 1:
            blocks.append(Paragraph(f"Figures are of the last checkpoint. {LEGEND}", "muted"))
        if evaluated:
            blocks.append(
                Picture(
                    f"comparison-{index}-desired-vs-achieved.png",
                    plots.desired_vs_achieved(evaluated, data_max=_common_maximum(members)),
                    "Achieved against desired return of all runs",
                    "Bars: 95% over the episodes of one seed. Bands: lowest to highest seed around their mean.",
                )
            )
        blocks += _over_seeds(evaluated) + _target_grid(members)
        curves = {run.name: run.records for run in members if run.records}
        if curves:
            figure = learning_curve(curves, data_max=_common_maximum(members))
            alt = "Learning curves of all runs over gradient steps"
            blocks.append(Picture(f"comparison-{index}-learning-curve.png", figure, alt))
    return blocks


def reductions(runs: Sequence[RunFolder]) -> list[Block]:
    """Return how far each method's error lies below the baseline's, on average in words, and per task in a table.

    Runs that have not come to their end are left out. Nothing if no task has both the baseline and another method.
    """
    tasks: dict[str, dict[str, float]] = {}
    every = list(dict.fromkeys(run.task for run in runs))
    environments = [environment for environment, _ in every]
    for task in every:
        name = task[0] if environments.count(task[0]) == 1 else " from ".join(task)
        groups = _evaluated([run for run in runs if run.task == task and run.stopped is None])
        baseline = baseline_of(groups)
        if baseline is None:
            continue
        for label, results in groups.items():
            found = error_reduction(groups[baseline], results)
            if label != baseline and found is not None:
                tasks.setdefault(name, {})[method_of(label)] = found.estimate
    if not tasks:
        return []
    methods = list(dict.fromkeys(method for found in tasks.values() for method in found))
    means = {
        method: float(np.mean([found[method] for found in tasks.values()]))
        for method in methods
        if all(method in found for found in tasks.values())
    }
    lines = [
        ["Last checkpoints", *tasks, "Mean"],
        *(
            [method, *(percent(found.get(method)) for found in tasks.values()), percent(means.get(method))]
            for method in methods
        ),
    ]
    if len(tasks) > len(methods):  # a page is longer than it is wide
        lines = [list(column) for column in zip(*lines, strict=True)]
    return [
        *([Paragraph(_in_words(means, len(tasks)))] if means else []),
        Heading(f"Reduction of the alignment error against {BASELINE}"),
        Table(lines[0], lines[1:]),
        Paragraph(_BASELINE_LEGEND, "muted"),
    ]


def _in_words(means: Mapping[str, float], tasks: int) -> str:
    """Say how the methods' errors lie beside the baseline's, the best one first."""
    listed = ", ".join(
        f"{percent(abs(means[method]))} {'lower' if means[method] >= 0 else 'higher'} with {method}"
        for method in sorted(means, key=lambda method: -means[method])
    )
    over = "" if tasks == 1 else f", on average over {tasks} data sets"
    return f"Beside {BASELINE} the alignment error of the last checkpoint is {listed}{over}."


def _evaluated(runs: Sequence[RunFolder]) -> dict[str, list[EvaluationResult]]:
    """Return the last evaluations by group, of runs that have one, of policies that were asked for something."""
    found = {id(run): run.last for run in runs if run.last is not None and not run.last.targets_ignored}
    groups = group_seeds([run for run in runs if id(run) in found])
    return {label: [found[id(run)] for run in group] for label, group in groups.items()}


def _runs_table(runs: Sequence[RunFolder]) -> Table:
    header = ["Run", "Seed", *METRICS, "Best E / span"]
    rows = []
    for run in runs:
        best = number(run.best.alignment_error_relative, 3) if run.last and run.best else MISSING
        cells = metrics(run.last) if run.last else [MISSING] * len(METRICS)
        name = run.name if run.stopped is None else f"{run.name}, {run.stopped}"
        rows.append([name, str(run.info.get("seed", MISSING)), *cells, best])
    if any(run.maximum is not None for run in runs):
        header.append("At the data's maximum")
        for run, row in zip(runs, rows, strict=True):
            row.append(_at_maximum(run))
    return Table(header, rows)


def _at_maximum(run: RunFolder) -> str:
    if run.maximum is None:
        return MISSING
    item, score = run.maximum.highest, run.maximum.normalized_score
    places = places_of(run.maximum)
    text = number(item.return_mean, places)
    if not run.maximum.targets_ignored:
        text += f" of {number(item.target, places)}"
    return text if score is None else f"{text} (score {number(score, 1)})"


def _over_seeds(groups: Mapping[str, Sequence[EvaluationResult]]) -> list[Block]:
    """One row per method: every error as mean and spread over seeds, and its reduction against the baseline."""
    baseline = baseline_of(groups)
    if baseline is None and all(len(results) < 2 for results in groups.values()):
        return []
    rows = []
    for label, results in groups.items():
        errors, spans, each = (
            [error for result in results if (error := getattr(result, name)) is not None]
            for name in ("alignment_error", "alignment_error_relative", "per_episode_error")
        )
        # The middle half of fewer than four values is all of them.
        iqm = stratified_bootstrap([spans], interquartile_mean) if len(spans) > 3 else None
        reduction = error_reduction(groups[baseline], results) if baseline not in (None, label) else None
        rows.append(
            [
                label,
                number(len(results)),
                _spread(errors, places_of(results[0])),
                _spread(spans, 3),
                _spread(each, places_of(results[0])),
                f"{iqm.estimate:.3f} [{iqm.low:.3f}, {iqm.high:.3f}]" if iqm else MISSING,
                _interval(reduction),
            ]
        )
    header = ["Mean \u00b1 std over seeds", "Seeds", "E", "E / span", "Per episode", "IQM of E / span [95%]"]
    return [Table([*header, f"Reduction against {BASELINE}"], rows)]


def _spread(values: Sequence[float], places: int) -> str:
    if not values:
        return MISSING
    mean = number(float(np.mean(values)), places)
    return f"{mean} \u00b1 {number(float(np.std(values, ddof=1)), places)}" if len(values) > 1 else mean


def _interval(share: Interval | None) -> str:
    if share is None:
        return MISSING
    return f"{percent(share.estimate)} [{number(100 * share.low, 0)}, {number(100 * share.high, 0)}]"


def _target_grid(runs: Sequence[RunFolder]) -> list[Block]:
    """Return the mean achieved return, one row per run and one column per target, for each set of targets in use."""
    grids: dict[tuple[float, ...], list[list[str]]] = {}
    for run in runs:
        if run.last is not None and not run.last.targets_ignored:
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
