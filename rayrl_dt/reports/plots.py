"""Figures of a report: asked against achieved returns, learning curves, the data's returns.

Everything goes through Matplotlib's `Figure` and the Agg canvas: no window, no global state, safe in threads.
Colors are Okabe and Ito's, which color-blind readers can tell apart; markers and dashes repeat the message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter

from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.reports.document import number

__all__ = [
    "COLORS",
    "DASHES",
    "FAINT",
    "INK",
    "MARKERS",
    "canvas",
    "desired_vs_achieved",
    "finish",
    "learning_curve",
    "return_histogram",
    "style_axes",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#24292f", "#6e7781"
_GRID = "#e6e8eb"
_DPI = 160

Record = Mapping[str, Any]
_Series = tuple[list[float], list[float]]


def desired_vs_achieved(
    results: Mapping[str, Sequence[EvaluationResult]],
    path: Path | None = None,
    *,
    data_max: float | None = None,
) -> Figure:
    """Draw achieved against desired raw return, with the identity line and the data's best episode.

    Args:
        results: the evaluations of each label, one per seed. One seed gets bars (95% bootstrap interval over
            its episodes); several get the mean over seeds and a band from the lowest seed to the highest.
        path: where to write a PNG.
        data_max: the highest raw return in the data.
    """
    figure, (axes,) = canvas(1, 1, (7.2, 5.0))
    for index, (label, seeds) in enumerate(results.items()):
        style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
        for position, group in enumerate(_same_targets(seeds)):
            _draw_seeds(axes, group, label if position == 0 else None, style)
    asked = [item.target for seeds in results.values() for result in seeds for item in result.targets]
    if asked:
        low, high = min(asked), max(asked)
        margin = 0.05 * (high - low) or max(1.0, 0.05 * abs(high))
        ends = [low - margin, high + margin]
        axes.plot(ends, ends, color=FAINT, lw=1.2, ls=(0, (5, 4)), zorder=1, label="achieved = desired")
    if data_max is not None:
        axes.axvline(
            data_max, color=INK, lw=1.2, ls=":", zorder=1, label=f"data's maximum, {number(data_max)}"
        )
    style_axes(axes, "Achieved against desired return", "desired return (raw)", "achieved return (raw)")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return finish(figure, path)


def learning_curve(
    runs: Mapping[str, Sequence[Record]], path: Path | None = None, *, data_max: float | None = None
) -> Figure:
    """Draw loss, learning rate, alignment error and return over gradient steps, where recorded.

    Args:
        runs: the `metrics.jsonl` records of each label.
        path: where to write a PNG.
        data_max: the highest raw return in the data, marked in the return panel.
    """
    panels = {
        "Training loss": (
            "loss",
            {label: _series(records, _metric("loss")) for label, records in runs.items()},
        ),
        "Learning rate": ("lr", {label: _series(records, _metric("lr")) for label, records in runs.items()}),
        "Alignment error": ("E (raw return)", {k: _series(v, _alignment_error) for k, v in runs.items()}),
        "Return at the highest target": ("raw return", {k: _series(v, _highest) for k, v in runs.items()}),
    }
    filled = {name: panel for name, panel in panels.items() if any(xs for xs, _ in panel[1].values())}
    columns = 2 if len(filled) > 1 else 1
    rows = max(1, math.ceil(len(filled) / columns))
    figure, every = canvas(rows, columns, (7.8 if columns == 2 else 5.6, 2.8 * rows + 0.4))
    for axes in every[len(filled) :]:
        axes.set_visible(False)
    for axes, (name, (unit, series)) in zip(every, filled.items(), strict=False):
        for index, (label, (xs, ys)) in enumerate(series.items()):
            axes.plot(
                xs,
                ys,
                color=COLORS[index % len(COLORS)],
                ls=DASHES[index % len(DASHES)],
                lw=1.8,
                marker="o" if len(xs) <= 40 and name not in ("Training loss", "Learning rate") else None,
                ms=4,
                label=label,
            )
        values = [y for _, ys in series.values() for y in ys]
        # Decades only where there are some: a log axis over half a decade is hard to read.
        if name == "Training loss" and min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
        if name in ("Learning rate", "Alignment error"):
            axes.set_ylim(bottom=0)
        if name == "Return at the highest target" and data_max is not None:
            axes.axhline(data_max, color=INK, lw=1.2, ls=":", label="data's maximum")
        for boundary in {step for records in runs.values() if (step := _online_start(records)) is not None}:
            axes.axvline(boundary, color=FAINT, lw=1.0, ls="--", label="online finetuning starts")
        style_axes(axes, name, "gradient steps", unit)
        if name == "Learning rate":
            axes.yaxis.set_major_formatter(FuncFormatter(_power))
    if filled:
        last = every[len(filled) - 1]
        handles, labels = last.get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(
                handles,
                labels,
                loc="outside lower center",
                ncols=min(4, len(labels)),
                frameon=False,
                fontsize=9,
            )
    return finish(figure, path)


def return_histogram(
    returns: Sequence[float] | np.ndarray[Any, Any],
    path: Path | None = None,
    *,
    targets: Sequence[float] = (),
) -> Figure:
    """Draw how many episodes of the data have which return, and where the targets lie among them.

    Args:
        returns: `(E,)` raw episode returns.
        path: where to write a PNG.
        targets: raw target returns, each marked by a line.
    """
    figure, (axes,) = canvas(1, 1, (7.2, 3.2))
    axes.hist(
        np.asarray(returns, np.float64), bins=40, color=COLORS[0], alpha=0.75, label="episodes of the data"
    )
    for index, target in enumerate(targets):
        axes.axvline(target, color=COLORS[1], lw=1.4, ls="--", label="targets" if index == 0 else None)
    style_axes(axes, "Returns in the data", "episode return (raw)", "episodes")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return finish(figure, path)


def _draw_seeds(
    axes: Any, group: Sequence[EvaluationResult], label: str | None, style: Mapping[str, Any]
) -> None:
    targets = sorted(item.target for item in group[0].targets)
    if len(group) == 1:
        items = sorted(group[0].targets, key=lambda item: item.target)
        means = [item.return_mean for item in items]
        bars = [item.return_interval for item in items]
        below = [max(0.0, bar.estimate - bar.low) for bar in bars]
        above = [max(0.0, bar.high - bar.estimate) for bar in bars]
        axes.errorbar(
            targets, means, [below, above], lw=2, ms=6, elinewidth=1.2, capsize=3, label=label, **style
        )
        return
    achieved = np.array(
        [[item.return_mean for item in sorted(r.targets, key=lambda i: i.target)] for r in group]
    )
    axes.fill_between(targets, achieved.min(0), achieved.max(0), color=style["color"], alpha=0.16, lw=0)
    axes.plot(targets, achieved.mean(0), lw=2, ms=6, label=label, **style)


def _same_targets(seeds: Sequence[EvaluationResult]) -> list[list[EvaluationResult]]:
    groups: dict[tuple[float, ...], list[EvaluationResult]] = {}
    for result in seeds:
        groups.setdefault(tuple(sorted(item.target for item in result.targets)), []).append(result)
    return list(groups.values())


def canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    """Return a figure of `size` inches and its axes, row by row."""
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def style_axes(axes: Any, title: str, x: str, y: str) -> None:
    """Give axes a title, labels with units, and the look of all figures."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "linear":
            # Ten significant figures hide rounding noise in ticks such as 0.30000000000000004.
            axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.grid(color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#c9cdd2")


def finish(figure: Figure, path: Path | None) -> Figure:
    """Write the figure as a PNG, if there is a path, and return it."""
    if path is not None:
        figure.savefig(path, format="png", metadata={"Software": "rayrl_dt"})
    return figure


def _series(records: Sequence[Record], value: Any) -> _Series:
    xs, ys = [], []
    for record in records:
        x, y = _number(record.get("gradient_steps")), value(record)
        if x is not None and y is not None:
            xs.append(x)
            ys.append(y)
    return xs, ys


def _metric(name: str) -> Any:
    return lambda record: _number(record.get(name))


def _alignment_error(record: Record) -> float | None:
    evaluation = record.get("evaluation")
    return _number(evaluation.get("alignment_error")) if isinstance(evaluation, Mapping) else None


def _highest(record: Record) -> float | None:
    try:
        return _number(max(record["evaluation"]["targets"], key=lambda item: item["target"])["return_mean"])
    except (KeyError, TypeError, ValueError):
        return None


def _online_start(records: Sequence[Record]) -> float | None:
    """Return the gradient step at which a run that also pretrained went online."""
    phases = [(record.get("phase"), _number(record.get("gradient_steps"))) for record in records]
    offline = [step for phase, step in phases if phase not in (None, "online") and step is not None]
    return max(offline) if offline and any(phase == "online" for phase, _ in phases) else None


def _power(value: float, _: int) -> str:
    """Return "1.5e-4" for 0.00015."""
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def _number(value: Any) -> float | None:
    """Return the value as a finite float, or None: records of a diverged or killed run hold anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
