"""What an experiment leaves in its folder: PNG files, `result.json` and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rayrl_dt.errors import UserError
from rayrl_dt.reports.document import Block, Heading, to_html

__all__ = ["COLORS", "FAINT", "INK", "canvas", "label", "prepare", "save", "write"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colors, which color-blind readers can tell apart: blue, vermilion and green first."""
INK, FAINT = "#24292f", "#6e7781"
_GRID = "#e6e8eb"


def prepare(folder: Path, **counts: int) -> Path:
    """Check the input before anything takes time, and make the folder.

    Args:
        folder: where the experiment is to write.
        **counts: options that count something, by their names on the command line.

    Raises:
        UserError: a count is less than 1, or the folder cannot be made.
    """
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} is {count}; it must be at least 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error.strerror}); choose another --out"
        ) from error
    return folder


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of that size in inches and its axes, without any window."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def label(axes: Any, title: str, x: str, y: str) -> None:
    """Give axes their title and names, in the look of the other reports."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=0)
    axes.grid(color=_GRID, lw=0.8, axis="y")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#c9cdd2")


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, format="png", metadata={"Software": "rayrl_dt"})


def write(folder: Path, title: str, blocks: Sequence[Block], result: Mapping[str, Any]) -> Path:
    """Write `result.json` and, around the PNG files that are there, `report.html`; returns the page's path."""
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(to_html(title, [Heading(title, 1), *blocks], folder), encoding="utf-8")
    return page
