"""Figures of returns: asked against achieved ones, and those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.reports.document import number
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, legend_name, series_style, style_axes

__all__ = ["desired_vs_achieved", "return_histogram"]


def desired_vs_achieved(
    results: Mapping[str, Sequence[EvaluationResult]], *, data_max: float | None = None
) -> Figure:
    """Draw achieved against desired raw return, with the identity line and the data's best episode.

    Args:
        results: the evaluations of each label, one per seed. One seed gets bars (95% bootstrap interval over
            its episodes); several get the mean over seeds and a band from the lowest seed to the highest.
        data_max: the highest raw return in the data.
    """
    figure, (axes,) = canvas(1, 1, (7.2, 5.0))
    for index, (label, seeds) in enumerate(results.items()):
        style = series_style(index)
        for position, group in enumerate(_same_targets(seeds)):
            _draw_seeds(axes, group, legend_name(label) if position == 0 else None, style)
    asked = [item.target for seeds in results.values() for result in seeds for item in result.targets]
    low, high = min(asked, default=0.0), max(asked, default=0.0)
    if asked:
        margin = 0.05 * (high - low) or max(1.0, 0.05 * abs(high))
        ends = [low - margin, high + margin]
        axes.plot(ends, ends, color=FAINT, lw=1.2, ls=(0, (5, 4)), zorder=1, label="achieved = desired")
    if data_max is not None:
        best = f"data's maximum, {number(data_max)}"
        if high > low and data_max > high + (high - low):
            # A line out there would squeeze all that there is to see into a corner.
            axes.plot([], [], ls="none", label=f"{best}: far to the right")
        else:
            axes.axvline(data_max, color=INK, lw=1.2, ls=":", zorder=1, label=best)
    style_axes(axes, "Achieved against desired return", "desired return (raw)", "achieved return (raw)")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def return_histogram(returns: Sequence[float], *, targets: Sequence[float] = ()) -> Figure:
    """Draw how many episodes of the data have which raw return, and lines where the raw targets lie among them."""
    figure, (axes,) = canvas(1, 1, (7.2, 3.2))
    axes.hist(
        np.asarray(returns, np.float64), bins=40, color=COLORS[0], alpha=0.75, label="episodes of the data"
    )
    for index, target in enumerate(targets):
        axes.axvline(target, color=COLORS[1], lw=1.4, ls="--", label="targets" if index == 0 else None)
    style_axes(axes, "Returns in the data", "episode return (raw)", "episodes")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


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
    mean, low, high = achieved.mean(0), achieved.min(0), achieved.max(0)
    if len(targets) == 1:  # of which a band has no width
        axes.errorbar(
            targets, mean, [mean - low, high - mean], ms=6, elinewidth=1.2, capsize=3, label=label, **style
        )
        return
    axes.fill_between(targets, low, high, color=style["color"], alpha=0.16, lw=0)
    axes.plot(targets, mean, lw=2, ms=6, label=label, **style)


def _same_targets(seeds: Sequence[EvaluationResult]) -> list[list[EvaluationResult]]:
    groups: dict[tuple[float, ...], list[EvaluationResult]] = {}
    for result in seeds:
        groups.setdefault(tuple(sorted(item.target for item in result.targets)), []).append(result)
    return list(groups.values())
