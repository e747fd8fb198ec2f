"""The figure of a run's training log: loss, learning rate, alignment error and return over gradient steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rayrl_dt.evaluation.finetuning import recorded_number
from rayrl_dt.reports.style import COLORS, DASHES, FAINT, INK, canvas, legend_name, style_axes

__all__ = ["learning_curve"]

Record = Mapping[str, Any]


def learning_curve(runs: Mapping[str, Sequence[Record]], *, data_max: float | None = None) -> Figure:
    """Draw loss, learning rate, alignment error and return over gradient steps, where the `metrics.jsonl` have them.

    The data's highest raw return is marked in the panel of returns.
    """
    panels = {
        name: (unit, {label: _series(records, value) for label, records in runs.items()})
        for name, (unit, value) in _PANELS.items()
    }
    filled = {name: panel for name, panel in panels.items() if any(xs for xs, _ in panel[1].values())}
    columns = 2 if len(filled) > 1 else 1
    rows = max(1, math.ceil(len(filled) / columns))
    size = (7.8 if columns == 2 else 5.6, 2.8 * rows + 0.4)
    figure, every = canvas(rows, columns, size, shown=len(filled))
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
                label=legend_name(label),
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
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if name == "Learning rate":
            axes.yaxis.set_major_formatter(FuncFormatter(_power))
    # All panels have the same lines, and the last one the data's maximum too.
    drawn = every[len(filled) - 1].get_legend_handles_labels() if filled else ([], [])
    if len(drawn[1]) > 1:
        columns = min(4, len(drawn[1]))
        figure.legend(*drawn, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _series(records: Sequence[Record], value: Callable[[Record], Any]) -> tuple[list[float], list[float]]:
    xs, ys = [], []
    for record in records:
        x, y = recorded_number(record.get("gradient_steps")), recorded_number(value(record))
        if x is not None and y is not None:
            xs.append(x)
            ys.append(y)
    return xs, ys


def _alignment_error(record: Record) -> Any:
    evaluation = record.get("evaluation")
    return evaluation.get("alignment_error") if isinstance(evaluation, Mapping) else None


def _highest(record: Record) -> Any:
    try:
        return max(record["evaluation"]["targets"], key=lambda item: item["target"])["return_mean"]
    except (KeyError, TypeError, ValueError):
        return None


_PANELS: dict[str, tuple[str, Callable[[Record], Any]]] = {
    "Training loss": ("loss", lambda record: record.get("loss")),
    "Learning rate": ("lr", lambda record: record.get("lr")),
    "Alignment error": ("E (raw return)", _alignment_error),
    "Return at the highest target": ("raw return", _highest),
}
"""The unit of each panel, and what it shows of a record."""


def _online_start(records: Sequence[Record]) -> float | None:
    """Return the gradient step at which a run that also pretrained went online."""
    phases = [(record.get("phase"), recorded_number(record.get("gradient_steps"))) for record in records]
    offline = [step for phase, step in phases if phase not in (None, "online") and step is not None]
    return max(offline) if offline and any(phase == "online" for phase, _ in phases) else None


def _power(value: float, _: int) -> str:
    """Return "1.5e-4" for 0.00015."""
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"
