"""The page of a grid of action gradients on one checkpoint."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rayrl_dt.evaluation.refinement_grid import Cell, RefinementGrid
from rayrl_dt.reports.document import Block, Paragraph, Picture, Table, Tiles, number
from rayrl_dt.reports.page import write_page
from rayrl_dt.reports.style import INK, canvas, style_axes

__all__ = ["heat_map", "write_refinement"]


def heat_map(grid: RefinementGrid) -> Figure:
    """Draw the mean return of each cell, one panel per rule; white is the control's, and its column is n = 0."""
    rules, etas, steps = grid.axes
    figure, every = canvas(
        1, len(rules), (1.6 + len(rules) * (1.0 + 0.85 * len(steps)), 1.6 + 0.55 * len(etas))
    )
    reach = max(abs(cell.mean - grid.control.mean) for cell in grid.cells) or 1.0
    low, high = grid.control.mean - reach, grid.control.mean + reach
    for axes, rule in zip(every, rules, strict=True):
        means = np.array([[grid.cell(rule, eta, n).mean for n in steps] for eta in etas])
        image = axes.imshow(means, cmap="PuOr", vmin=low, vmax=high, aspect="auto", origin="lower")
        for (row, column), mean in np.ndenumerate(means):
            dark = abs(mean - grid.control.mean) > 0.6 * reach
            color = "white" if dark else INK
            axes.text(column, row, number(mean), ha="center", va="center", fontsize=8.5, color=color)
        style_axes(axes, rule, "steps n", "step size η")
        axes.grid(visible=False)
        axes.set_xticks(range(len(steps)), [str(n) for n in steps])
        axes.set_yticks(range(len(etas)), [f"{eta:g}" for eta in etas])
    bar = figure.colorbar(image, ax=every)
    bar.set_label("mean return", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    return figure


def write_refinement(grid: RefinementGrid, folder: Path) -> Path:
    """Write `refinement.png`, `result.json` and the page, and return the page's path."""
    title = "Action gradients on one checkpoint"
    return write_page(folder, "report", title, _report(grid), result=grid.to_json())


def _report(grid: RefinementGrid) -> list[Block]:
    rules, etas, steps = grid.axes
    best, control = grid.best, grid.control
    chosen = best.settings
    words = "no cell" if chosen.idle else f"{chosen.rule}, η {chosen.eta:g}, n {chosen.n}"
    better = sum(cell.mean > control.mean for cell in grid.cells)
    return [
        Paragraph(
            f"{grid.checkpoint}, asked for {number(grid.target)}, {len(control.returns)} episodes a cell, "
            f"seed {grid.seed}",
            "muted",
        ),
        Tiles(
            [
                ("Without", number(control.mean), "n = 0"),
                ("Highest cell", number(best.mean), words),
                ("Cells above n = 0", f"{better} of {len(grid.cells)}", ""),
            ]
        ),
        Picture(
            "refinement.png",
            heat_map(grid),
            "Mean return of each cell of the grid; the numbers are in the table below",
        ),
        Table(
            ["rule, η", *(f"n = {n}" for n in steps)],
            [
                [f"{rule}, {eta:g}", *(_entry(grid.cell(rule, eta, n)) for n in steps)]
                for rule, eta in product(rules, etas)
            ],
        ),
        Paragraph(
            "Mean return ± standard deviation over episodes; every cell runs the same seeds. The highest of many cells "
            "is high by chance, too: confirm it with another seed before quoting it.",
            "muted",
        ),
    ]


def _entry(cell: Cell) -> str:
    return f"{number(cell.mean)} ± {number(cell.std)}"
