"""The page of the ways to act that were tried on one checkpoint."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rayrl_dt.critics.calibration import Calibration
from rayrl_dt.evaluation.refinement_grid import Cell, RefinementGrid, Sweep
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.refinement import WayToAct
from rayrl_dt.reports.document import Block, Heading, Paragraph, Picture, Table, Tiles, number, percent
from rayrl_dt.reports.page import write_page
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, style_axes

__all__ = ["calibration_plot", "heat_map", "write_refinement"]

_DOTS = 2_000


def heat_map(sweep: Sweep) -> Figure:
    """Draw the mean return of each cell, one panel per rule or mode; white is the control's, and it has a column."""
    panels, rows, columns = sweep.axes
    control = sweep.control
    figure, every = canvas(
        1, len(panels), (1.6 + len(panels) * (1.0 + 0.85 * len(columns)), 1.6 + 0.55 * len(rows))
    )
    reach = max(abs(cell.mean - control.mean) for cell in sweep.cells) or 1.0
    low, high = control.mean - reach, control.mean + reach
    for axes, panel in zip(every, panels, strict=True):
        means = np.array([[sweep.cell(panel, row, column).mean for column in columns] for row in rows])
        image = axes.imshow(means, cmap="PuOr", vmin=low, vmax=high, aspect="auto", origin="lower")
        for (row, column), mean in np.ndenumerate(means):
            dark = abs(mean - control.mean) > 0.6 * reach
            color = "white" if dark else INK
            axes.text(column, row, number(mean), ha="center", va="center", fontsize=8.5, color=color)
        style_axes(axes, panel, sweep.layout.labels[1], sweep.layout.labels[0])
        axes.grid(visible=False)
        axes.set_xticks(range(len(columns)), [f"{each:g}" for each in columns])
        axes.set_yticks(range(len(rows)), [_short(each) for each in rows])
    bar = figure.colorbar(image, ax=every)
    bar.set_label("mean return", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    return figure


def calibration_plot(calibration: Calibration) -> Figure:
    """Draw what Q is of logged actions where a return is left, and the rising function that stands for it."""
    assert calibration.logged is not None
    figure, (axes,) = canvas(1, 1, (6.4, 3.8))
    every = -(-len(calibration.returns) // _DOTS)
    axes.scatter(
        calibration.returns[::every], calibration.logged[::every], s=5, color=FAINT, alpha=0.5, label="logged"
    )
    axes.plot(calibration.returns, calibration.values, color=COLORS[0], lw=2, label="rising function")
    style_axes(axes, "Q of logged actions", "return that is left (raw)", "Q")
    axes.legend(frameon=False, fontsize=9)
    return figure


def write_refinement(grid: RefinementGrid, folder: Path) -> Path:
    """Write the heat maps, `result.json` and the page, and return the page's path."""
    (title, *others) = [sweep.layout.title for sweep in grid.sweeps]
    title = "Ways to act" if others else title
    return write_page(folder, "report", f"{title} on one checkpoint", _report(grid), result=grid.to_json())


def _report(grid: RefinementGrid) -> list[Block]:
    best, control = grid.best, grid.control
    better = sum(cell.mean > control.mean for cell in grid.cells)
    blocks: list[Block] = [
        Paragraph(
            f"{grid.checkpoint}, asked for {number(grid.target)}, {len(control.returns)} episodes a cell, "
            f"seed {grid.seed}",
            "muted",
        ),
        Paragraph(
            f"{better} of {len(grid.cells)} cells lie above {number(control.mean)}, the mean return without; the "
            f"highest, {_words(best.settings, grid)}, has {number(best.mean)}."
        ),
        Tiles(
            [
                ("Without", number(control.mean), _words(control.settings, grid)),
                ("Highest cell", number(best.mean), _words(best.settings, grid)),
                ("Cells above it", f"{better} of {len(grid.cells)}", ""),
            ]
        ),
    ]
    for sweep in grid.sweeps:
        blocks += _sweep(sweep, headed=len(grid.sweeps) > 1)
    if grid.calibration is not None:
        blocks += _calibration(grid.calibration)
    return [
        *blocks,
        Paragraph(
            "Mean return ± standard deviation over episodes; every cell runs the same seeds. The highest of many cells "
            "is high by chance, too: confirm it with another seed before quoting it.",
            "muted",
        ),
    ]


def _sweep(sweep: Sweep, *, headed: bool) -> list[Block]:
    panels, rows, columns = sweep.axes
    layout = sweep.layout
    sides = ", ".join(each for each in (layout.panel, "η" if layout.row == "eta" else layout.row) if each)
    table = [
        [
            ", ".join(_short(each) for each in (panel, row) if each != "") or "mean return",
            *(_entry(sweep.cell(panel, row, column)) for column in columns),
        ]
        for panel, row in product(panels, rows)
    ]
    return [
        *([Heading(layout.title)] if headed else []),
        Picture(
            layout.picture,
            heat_map(sweep),
            "Mean return of each cell of the grid; the numbers are in the table below",
        ),
        Table(
            [sides, *(f"{'w' if layout.column == 'weight' else 'n'} = {each:g}" for each in columns)], table
        ),
    ]


def _calibration(calibration: Calibration) -> list[Block]:
    return [
        Heading("What Q is where a return is left"),
        Picture(
            "calibration.png",
            calibration_plot(calibration),
            "Q of logged actions against the return that was left; the line is what a double check takes for a return",
        ),
        Paragraph(
            f"The line explains {percent(calibration.explained)} of the variance of Q. The less, the less a double "
            "check in mode align can tell.",
            "muted",
        ),
    ]


def _words(settings: WayToAct | None, grid: RefinementGrid) -> str:
    if settings is None:
        return "the policy alone" if grid.guidance == 1 else f"the policy alone, guidance {grid.guidance:g}"
    if isinstance(settings, Guidance):
        return f"guidance {settings.weight:g}"
    if isinstance(settings, DoubleCheck):
        return f"double check, {settings.mode}, spread {settings.spread:g}, n {settings.n}"
    chosen: Any = settings
    return f"{chosen.rule}, η {chosen.eta:g}, n {chosen.n}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _entry(cell: Cell) -> str:
    return f"{number(cell.mean)} ± {number(cell.std)}"
