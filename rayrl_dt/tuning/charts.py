"""The figures of a sweep: parallel coordinates, the metric over each parameter, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.ticker import LogLocator, MaxNLocator

from rayrl_dt.reports.document import number
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, style_axes
from rayrl_dt.reports.svg import mark, save_svg
from rayrl_dt.tuning.results import Group, TrialResult
from rayrl_dt.tuning.space import Space
from rayrl_dt.tuning.sweep_spec import SEED

__all__ = ["curves", "label", "parallel_coordinates", "scatter"]

_COLUMNS = 2
_TICKS = 4
_LEGEND = 8
# Lines that can hardly be seen are there to be hit by the mouse.
_HIT: dict[str, Any] = {"lw": 9, "alpha": 0.01, "color": "white"}


@dataclass(frozen=True)
class _Axis:
    """One upright line of the parallel coordinates.

    Attributes:
        title: below it.
        ticks: (place from 0 to 1, text).
        places: of each trial, from 0 to 1.
    """

    title: str
    ticks: tuple[tuple[float, str], ...]
    places: tuple[float, ...]


def label(value: Any) -> str:
    """Return a parameter as the file would write it; rounded to four figures."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parallel_coordinates(
    spaces: Sequence[Space], trials: Sequence[TrialResult], metric: str, path: Path
) -> None:
    """Draw a line per trial through its parameters to its metric; darker is better.

    Args:
        spaces: the parameters, each an upright line.
        trials: those with a finite last metric.
        metric: its name.
        path: where to write an SVG.
    """
    axes_of = [_axis(space, [trial.parameters[space.path] for trial in trials]) for space in spaces]
    lasts = [trial.last for trial in trials if trial.last is not None]
    axes_of.append(_linear(metric, lasts))
    figure, (axes,) = canvas(1, 1, (max(6.0, 1.75 * len(axes_of)), 3.9))
    order = sorted(range(len(trials)), key=lambda index: lasts[index], reverse=trials[0].mode == "min")
    colors = colormaps["viridis_r"]
    for rank, index in enumerate(order):
        name = trials[index].name
        xs, ys = range(len(axes_of)), [axis.places[index] for axis in axes_of]
        shade = to_hex(colors(0.1 + 0.9 * rank / max(1, len(order) - 1)))
        axes.plot(xs, ys, color=shade, lw=1.7, alpha=0.85, gid=mark(name))
        axes.plot(xs, ys, gid=mark(name), **_HIT)
    for x, axis in enumerate(axes_of):
        axes.axvline(x, color=FAINT, lw=1.0, zorder=0)
        for place, text in axis.ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
            axes.text(x + 0.03, place, text, fontsize=8, color=INK, va="center", bbox=box)
    axes.set_xlim(-0.15, len(axes_of) - 0.55)
    axes.set_ylim(-0.06, 1.06)
    axes.set_axis_off()
    for x, axis in enumerate(axes_of):
        axes.text(
            x,
            -0.12,
            axis.title,
            fontsize=8.5,
            fontweight="bold",
            color=INK,
            va="top",
            ha="left",
            clip_on=False,
        )
    save_svg(figure, path, _titles(trials))


def scatter(spaces: Sequence[Space], trials: Sequence[TrialResult], metric: str, path: Path) -> None:
    """Draw the last metric of each trial over each parameter.

    Args:
        spaces: the parameters, one panel each.
        trials: those with a finite last metric.
        metric: its name.
        path: where to write an SVG.
    """
    columns = min(_COLUMNS, len(spaces))
    rows = math.ceil(len(spaces) / columns)
    figure, every = canvas(rows, columns, (7.8, 3.0 * rows + 0.2))
    for axes in every[len(spaces) :]:
        axes.set_visible(False)
    for axes, space in zip(every, spaces, strict=False):
        options = _options(space)
        if space.kind == "loguniform":
            axes.set_xscale("log")
        for trial in trials:
            value = trial.parameters[space.path]
            x = value if options is None else options.index(label(value))
            axes.plot([x], [trial.last], "o", ms=6, mew=0, color=COLORS[0], alpha=0.75, gid=mark(trial.name))
        style_axes(axes, space.path.rpartition(".")[2], space.path, metric)
        if options is not None:
            axes.set_xticks(range(len(options)), options)
            axes.set_xlim(-0.5, len(options) - 0.5)
    save_svg(figure, path, _titles(trials))


def curves(groups: Sequence[Group], metric: str, path: Path) -> None:
    """Draw the metric over gradient steps: a line per trial, the seeds of a setting in one color.

    Args:
        groups: settings, the best first.
        metric: its name.
        path: where to write an SVG.
    """
    figure, (axes,) = canvas(1, 1, (7.8, 3.9))
    shown = [trial for group in groups for trial in group.trials if trial.curve]
    for index, group in enumerate(groups):
        color = COLORS[index % len(COLORS)]
        for trial in group.trials:
            points = [point for point in trial.curve if math.isfinite(point[1])]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=color, lw=1.6, marker="o", ms=3.5, gid=mark(trial.name))
            axes.plot(xs, ys, gid=mark(trial.name), **_HIT)
        if len(groups) <= _LEGEND:
            text = ", ".join(
                f"{path.rpartition('.')[2]} {label(value)}" for path, value in group.parameters.items()
            )
            axes.plot([], [], color=color, lw=2, label=text or "all")
    if len(groups) <= _LEGEND:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    style_axes(axes, metric, "gradient steps", metric)
    save_svg(figure, path, _titles(shown))


def _titles(trials: Sequence[TrialResult]) -> dict[str, str]:
    """Return what is shown over each trial's marks."""
    titles = {}
    for trial in trials:
        values = [
            f"{'seed' if path == SEED else path} {label(value)}" for path, value in trial.parameters.items()
        ]
        titles[trial.name] = "\n".join([f"trial {trial.name}: {number(trial.last)}", *values])
    return titles


def _options(space: Space) -> list[str] | None:
    """Return the places of a space that lists its values; None where values are drawn from a range."""
    if space.kind not in ("grid", "choice"):
        return None
    return list(dict.fromkeys(label(option) for option in space.options))


def _axis(space: Space, values: Sequence[Any]) -> _Axis:
    title = space.path.rpartition(".")[2]
    options = _options(space)
    if options is not None:
        steps = max(1, len(options) - 1)
        ticks = tuple((index / steps, option) for index, option in enumerate(options))
        return _Axis(title, ticks, tuple(options.index(label(value)) / steps for value in values))
    low, high = space.options[:2]
    if space.kind != "loguniform":
        return _linear(title, values, (low, high))
    inside = [tick for tick in LogLocator(subs=(1.0, 3.0)).tick_values(low, high) if low <= tick <= high]

    def place(value: float) -> float:
        return math.log(value / low) / math.log(high / low)

    return _Axis(
        title, tuple((place(tick), label(float(tick))) for tick in inside), tuple(map(place, values))
    )


def _linear(title: str, values: Sequence[float], bounds: tuple[float, float] | None = None) -> _Axis:
    low, high = bounds if bounds is not None else (min(values), max(values))
    if low == high:
        low, high = low - 1, high + 1
    inside = [tick for tick in MaxNLocator(_TICKS).tick_values(low, high) if low <= tick <= high]

    def place(value: float) -> float:
        return (value - low) / (high - low)

    return _Axis(
        title, tuple((place(tick), number(float(tick))) for tick in inside), tuple(map(place, values))
    )
