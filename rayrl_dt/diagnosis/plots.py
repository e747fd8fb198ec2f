"""Figures of a diagnosis: attention, sensitivity to the target, what is left of the target step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayrl_dt.diagnosis.attention import AttentionSummary, LayerAttention
from rayrl_dt.diagnosis.conditioning import Course, Sensitivity
from rayrl_dt.reports.document import number
from rayrl_dt.reports.style import COLORS, DASHES, FAINT, INK, canvas, legend_name, series_style, style_axes

__all__ = ["attention_shares", "return_ages", "return_courses", "sensitivity_curves"]

_BLUE, _VERMILION, _ORANGE, _SKY = COLORS[0], COLORS[1], COLORS[4], COLORS[5]
_COLUMNS = 3
_SEGMENTS = {
    "return of the same step": _VERMILION,
    "earlier returns": _ORANGE,
    "states": _BLUE,
    "actions": _SKY,
}


def attention_shares(summaries: Mapping[str, AttentionSummary]) -> Figure:
    """Draw what each layer attends to as stacked bars, one panel per policy, all on one scale.

    RADT's layers have two bars: self-attention, and SeqRA among the returns alone.
    """
    figure, every = _panels(len(summaries), 3.4)
    for axes, (label, summary) in zip(every, summaries.items(), strict=False):
        bars = [bar for index, layer in enumerate(summary.layers, start=1) for bar in _bars(index, layer)]
        positions = [place for place, _, _ in bars]
        bottom = np.zeros(len(bars))
        for name, color in _SEGMENTS.items():
            heights = np.array([segments.get(name, 0.0) for _, _, segments in bars])
            if heights.any():
                axes.bar(positions, heights, 0.8, bottom, color=color, label=name)
            bottom += heights
        if "return" in summary.uniform_shares:
            chance = summary.uniform_shares["return"]
            axes.axhline(chance, color=INK, lw=1.2, ls=":", label="returns, if all were seen alike")
        style_axes(axes, label, "layer", "share of attention")
        axes.set_xticks(positions, [name for _, name, _ in bars])
        axes.set_ylim(0, 1)
        axes.grid(axis="x", visible=False)
    _shared_legend(figure, every)
    return figure


def return_ages(summaries: Mapping[str, AttentionSummary]) -> Figure:
    """Draw how old the attended returns are, one panel per policy that attends to returns."""
    shown = {label: summary for label, summary in summaries.items() if summary.uniform_ages}
    figure, every = _panels(len(shown), 3.2)
    for position, (axes, (label, summary)) in enumerate(zip(every, shown.items(), strict=False)):
        ages = np.arange(len(summary.uniform_ages))
        for index, layer in enumerate(summary.layers):
            axes.plot(
                ages, _normalized(layer.ages), lw=1.8, ms=4, label=f"layer {index + 1}", **series_style(index)
            )
        axes.plot(ages, _normalized(summary.uniform_ages), color=FAINT, lw=1.2, ls=":", label="all alike")
        style_axes(axes, label, "age of the return (steps)", "share of the attention to returns")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if position:
            axes.sharey(every[0])
    every[0].set_ylim(bottom=0)
    _shared_legend(figure, every)
    return figure


def sensitivity_curves(curves: Mapping[str, Sensitivity]) -> Figure:
    """Draw how far the action moves with the target, against the distance from the data's own returns."""
    figure, (axes,) = canvas(1, 1, (7.2, 3.8))
    axes.axvline(0.0, color=FAINT, lw=1.2, ls=":", zorder=1, label="the data's own returns")
    for index, (label, curve) in enumerate(curves.items()):
        axes.plot(curve.offsets, curve.values, lw=2, ms=5, label=legend_name(label), **series_style(index))
    style_axes(
        axes,
        "Sensitivity of the action to the target",
        "added to every return-to-go of the window (raw return)",
        "action ranges per range of returns",
    )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def return_courses(courses: Mapping[str, Sequence[Course]]) -> Figure:
    """Draw what is left of each target against the step, one panel per policy, all on one scale."""
    figure, every = _panels(len(courses), 3.6)
    for position, (axes, (label, items)) in enumerate(zip(every, courses.items(), strict=False)):
        for index, course in enumerate(sorted(items, key=lambda item: item.target)):
            color, dashes = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
            axes.plot(
                course.remaining, color=color, ls=dashes, lw=1.8, label=f"target {number(course.target)}"
            )
        axes.axhline(0.0, color=INK, lw=1.2, ls=":", label="target used up")
        style_axes(axes, label, "step of the episode", "target minus rewards so far (raw)")
        if position:
            axes.sharex(every[0])
            axes.sharey(every[0])
    every[0].autoscale()
    _shared_legend(figure, every)
    return figure


def _bars(index: int, layer: LayerAttention) -> list[tuple[float, str, dict[str, float]]]:
    """(place, name, height of each segment) of the bars of a layer."""
    own = {"states": layer.shares["state"], "actions": layer.shares["action"]}
    returns = {}
    if layer.ages:
        returns = {"return of the same step": layer.ages[0], "earlier returns": sum(layer.ages[1:])}
    if layer.seqra is None:
        return [(2.0 * index, str(index), returns | own)]
    # Two bars stand close together, the layers apart.
    return [(2.4 * index, f"{index}\nself", own), (2.4 * index + 0.9, f"{index}\nSeqRA", returns)]


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    """Return a figure with `count` axes side by side, in rows of at most `_COLUMNS`; the rest is hidden."""
    columns = 2 if count == 4 else max(1, min(count, _COLUMNS))
    rows = max(1, math.ceil(count / columns))
    return canvas(rows, columns, (max(5.6, 3.9 * columns), height * rows + 0.4), shown=count)


def _shared_legend(figure: Figure, every: Sequence[Any]) -> None:
    """One legend below all panels, each label once, bars before lines."""
    found: dict[str, Any] = {}
    for axes in every:
        handles, labels = axes.get_legend_handles_labels()
        for label, handle in zip(labels, handles, strict=True):
            found.setdefault(label, handle)
    order = sorted(found, key=lambda label: label not in _SEGMENTS)
    columns = 3 if len(order) in (3, 5, 6) else 4
    columns = min(columns, int(figure.get_size_inches()[0] / 2.4))  # as fit below narrow panels
    style = {"loc": "outside lower center", "frameon": False, "fontsize": 9, "labelcolor": INK}
    figure.legend([found[label] for label in order], order, ncols=columns, **style)


def _normalized(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return the values over their sum, so that DT's attention to returns compares with SeqRA's, which has no other."""
    mass: np.ndarray[Any, Any] = np.asarray(values)
    return mass / mass.sum() if mass.sum() > 0 else mass
