"""A figure of frames: a row for each target."""

from __future__ import annotations

from matplotlib.figure import Figure

from rayrl_dt.evaluation.frame_strip import FrameStrip
from rayrl_dt.reports.document import number
from rayrl_dt.reports.style import FAINT, INK, canvas

__all__ = ["frame_figure"]

_INCHES = 1.25


def frame_figure(strip: FrameStrip) -> Figure:
    """Draw the frames of each episode from its first step to its end, with what was asked for and achieved."""
    rows, columns = strip.steps.shape
    figure, every = canvas(rows, columns, (_INCHES * columns, (_INCHES + 0.35) * rows))
    for index, axes in enumerate(every):
        row, column = divmod(index, columns)
        axes.imshow(strip.frames[row, column], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"step {number(int(strip.steps[row, column]))}", fontsize=7, color=FAINT)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if column == 0:
            asked, achieved = (number(float(values[row])) for values in (strip.targets, strip.returns))
            title = f"asked for {asked}, achieved {achieved}"
            axes.set_title(title, loc="left", fontsize=9, fontweight="bold", color=INK)
    return figure
