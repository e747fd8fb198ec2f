"""The look of all figures: one palette, one canvas, one style of axes.

Everything goes through Matplotlib's `Figure` and the Agg canvas: no window, no global state, safe in threads.
Colors are Okabe and Ito's, which color-blind readers can tell apart; markers and dashes repeat the message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter, StrMethodFormatter

__all__ = [
    "COLORS",
    "DASHES",
    "FAINT",
    "GRID",
    "INK",
    "MARKERS",
    "canvas",
    "legend_name",
    "save_png",
    "series_style",
    "style_axes",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Blue, vermilion and green first."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
INK, FAINT, GRID = "#24292f", "#6e7781", "#e6e8eb"
_SPINE = "#c9cdd2"
_DPI = 160


def canvas(
    rows: int, columns: int, size: tuple[float, float], *, shown: int | None = None
) -> tuple[Figure, list[Any]]:
    """Return a figure of `size` inches and its axes, row by row; those beyond the first `shown` are hidden."""
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in every[shown:] if shown is not None else ():
        axes.set_visible(False)
    return figure, every


def series_style(index: int) -> dict[str, Any]:
    """Return color, marker and dashes of the series with a number, from 0; the first 49 differ in color or marker."""
    turn, place = divmod(index, len(COLORS))
    marker = MARKERS[(place + turn) % len(MARKERS)]
    return {"color": COLORS[place], "marker": marker, "ls": DASHES[turn % len(DASHES)]}


def legend_name(name: str) -> str:
    """Return a name as a legend shows it: Matplotlib leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def style_axes(axes: Any, title: str, x: str, y: str) -> None:
    """Give axes a title, labels with units, and the look of all figures."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        # Not where ticks have names of their own.
        if isinstance(axis.get_major_formatter(), ScalarFormatter):
            # Ten significant figures hide rounding noise in ticks such as 0.30000000000000004.
            axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_SPINE)


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG."""
    figure.savefig(path, format="png", metadata={"Software": "rayrl_dt"})
