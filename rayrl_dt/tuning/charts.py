"""The figures of a sweep: parallel coordinates, the metric over each parameter, learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from rayrl_dt.reports.document import number
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, style_axes
from rayrl_dt.reports.svg import mark
from rayrl_dt.tuning.results import Group, TrialResult
from rayrl_dt.tuning.space import Space
from rayrl_dt.tuning.sweep_spec import SEED

__all__ = ["curves", "label", "parallel_coordinates", "scatter", "setting", "titles"]

_COLUMNS = 2
_TICKS = 4
_LEGEND = 8
# Lines that can hardly be seen are there to be hit by the mouse.
_HIT: dict[str, Any] = {"lw": 9, "alpha": 0.01, "color": "white"}


_Axis = tuple[dict[float, str], Callable[[Any], float]]
"""An upright line of the parallel coordinates: its ticks by their places from 0 to 1, and the place of a value."""


def label(value: Any) -> str:
    """Return a parameter as the file would write it; rounded to four figures."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def setting(parameters: Mapping[str, Any]) -> str:
    """Return the parameters of a setting in one line, by the last parts of their keys."""
    return ", ".join(f"{path.rpartition('.')[2]} {label(value)}" for path, value in parameters.items())


def parallel_coordinates(spaces: Sequence[Space], trials: Sequence[TrialResult], metric: str) -> Figure:
    """Draw a line per trial with a finite last metric, through its parameters to its metric; darker is better."""
    lasts = [trial.last for trial in trials if trial.last is not None]
    names = [*(space.path.rpartition(".")[2] for space in spaces), metric]
    axes_of = [*map(_axis, spaces), _linear(min(lasts), max(lasts))]
    figure, (axes,) = canvas(1, 1, (max(6.0, 1.75 * len(axes_of)), 3.9))
    order = sorted(range(len(trials)), key=lambda index: lasts[index], reverse=trials[0].mode == "min")
    colors = colormaps["viridis_r"]
    for rank, index in enumerate(order):
        trial = trials[index]
        values = [*(trial.parameters[space.path] for space in spaces), lasts[index]]
        ys = [place(value) for (_, place), value in zip(axes_of, values, strict=True)]
        shade = to_hex(colors(0.1 + 0.9 * rank / max(1, len(order) - 1)))
        axes.plot(range(len(ys)), ys, color=shade, lw=1.7, alpha=0.85, gid=mark(trial.name))
        axes.plot(range(len(ys)), ys, gid=mark(trial.name), **_HIT)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    for x, (ticks, _) in enumerate(axes_of):
        axes.axvline(x, color=FAINT, lw=1.0, zorder=0)
        for place, text in ticks.items():
            axes.text(x + 0.03, place, text, fontsize=8, color=INK, va="center", bbox=box)
    axes.set_xlim(-0.15, len(axes_of) - 0.55)
    axes.set_ylim(-0.06, 1.06)
    axes.set_axis_off()
    style = {"fontsize": 8.5, "fontweight": "bold", "color": INK, "va": "top", "ha": "left"}
    for x, name in enumerate(names):
        axes.text(x, -0.12, name, clip_on=False, **style)
    return figure


def scatter(spaces: Sequence[Space], trials: Sequence[TrialResult], metric: str) -> Figure:
    """Draw the last metric of each trial that has a finite one over each parameter, one panel each."""
    columns = min(_COLUMNS, len(spaces))
    rows = math.ceil(len(spaces) / columns)
    figure, every = canvas(rows, columns, (7.8, 3.0 * rows + 0.2), shown=len(spaces))
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
    return figure


def curves(groups: Sequence[Group], metric: str) -> Figure:
    """Draw the metric over gradient steps: a line per trial, the seeds of a setting in one color."""
    figure, (axes,) = canvas(1, 1, (7.8, 3.9))
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
            axes.plot([], [], color=color, lw=2, label=setting(group.parameters) or "all")
    if len(groups) <= _LEGEND:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    style_axes(axes, metric, "gradient steps", metric)
    return figure


def titles(trials: Sequence[TrialResult]) -> dict[str, str]:
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


def _axis(space: Space) -> _Axis:
    options = _options(space)
    if options is not None:
        steps = max(1, len(options) - 1)
        ticks = {index / steps: option for index, option in enumerate(options)}
        return ticks, lambda value: options.index(label(value)) / steps
    low, high = space.options[:2]
    if space.kind != "loguniform":
        return _linear(low, high)

    def place(value: float) -> float:
        return math.log(value / low) / math.log(high / low)

    found = LogLocator(subs=(1.0, 3.0)).tick_values(low, high)
    return {place(tick): label(float(tick)) for tick in found if low <= tick <= high}, place


def _linear(low: float, high: float) -> _Axis:
    if low == high:
        low, high = low - 1, high + 1

    def place(value: float) -> float:
        return (value - low) / (high - low)

    found = MaxNLocator(_TICKS).tick_values(low, high)
    return {place(tick): number(float(tick)) for tick in found if low <= tick <= high}, place
