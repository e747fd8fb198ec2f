"""The part of a page on what finetuning did: the drop at the switch, return while collecting, obedience."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayrl_dt.evaluation.finetuning import Course, Standing, course_of
from rayrl_dt.reports.document import Block, Heading, Paragraph, Picture, Table, number
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, style_axes

__all__ = ["finetuning"]

_LEGEND = (
    "Return is that at the highest target; E is the alignment error over all targets (raw return) and rho Spearman's "
    "rank correlation, where there are several. Collected is the mean return of the episodes that the policy learned "
    "from, exploration included: what finetuning costs while it goes on. Evaluations are noisy, so a fall of less than "
    "their spread is none."
)


def finetuning(records: Sequence[Mapping[str, Any]], name: str, prefix: str) -> list[Block]:
    """Return the blocks on a run's finetuning; none for a run that has none.

    Args:
        records: the lines of `metrics.jsonl`.
        name: of the run, for the picture's description.
        prefix: of the picture's file.
    """
    course = course_of(records)
    if course is None:
        return []
    rows = [
        ("Before", course.before),
        ("Lowest", course.lowest),
        ("Best", course.best),
        ("Last", course.online[-1]),
    ]
    return [
        Heading("Finetuning", 3),
        Paragraph(_told(course)),
        Table(
            ["Evaluation", "Environment steps", "Return", "E", "rho", "Collected"],
            [[label, *_row(standing, course)] for label, standing in rows if standing is not None],
        ),
        Picture(
            f"{prefix}finetuning.png",
            _figure(course),
            f"Return and alignment error of {name} over environment steps; the numbers are in the table above",
        ),
        Paragraph(_LEGEND, "muted"),
    ]


def _told(course: Course) -> str:
    """Return the drop at the switch, and the whole, in words."""
    before, fell, back = course.before, course.fell, course.back
    whole = f"Online it averages {number(course.area)}"
    if course.unsteadiness is not None:
        whole += f"; from one evaluation to the next it changes by {number(course.unsteadiness)} (standard deviation)"
    whole += "."
    if before is None:
        return f"The policy that finetuning began with was not evaluated. {whole}"
    level = f"Offline the policy achieved {number(before.achieved)}"
    if fell is None:
        return f"{level}, and no evaluation online is below that. {whole}"
    drop = f"{level}; online it fell below that by {number(fell.env_steps)} environment steps"
    if back is None:
        return f"{drop}, and has not come back. {whole}"
    return f"{drop} and was back by {number(back.env_steps)}. {whole}"


def _row(standing: Standing, course: Course) -> list[str]:
    """Return a line of the table; what was collected is that of the last round up to there."""
    collected = [value for steps, value in course.collected if steps <= standing.env_steps]
    return [
        number(standing.env_steps),
        number(standing.achieved),
        number(standing.error),
        number(standing.spearman, 2),
        number(collected[-1] if collected else None),
    ]


def _figure(course: Course) -> Figure:
    points = [*([course.before] if course.before else []), *course.online]
    errors = [(each.env_steps, each.error) for each in points if each.error is not None]
    columns = 2 if errors else 1
    figure, every = canvas(1, columns, (7.8 if errors else 5.6, 3.2))
    returns, *others = every
    if course.collected:
        xs, ys = zip(*course.collected, strict=True)
        returns.plot(xs, ys, color=COLORS[1], lw=1.2, ls="--", label="while collecting")
    steps, achieved = [each.env_steps for each in points], [each.achieved for each in points]
    returns.plot(steps, achieved, color=COLORS[0], lw=1.8, marker="o", ms=4, label="evaluated")
    if course.before is not None:
        returns.axhline(course.before.achieved, color=INK, lw=1.0, ls=":", label="before finetuning")
    style_axes(returns, "Return at the highest target", "environment steps", "raw return")
    for axes in others:
        axes.plot(*zip(*errors, strict=True), color=COLORS[0], lw=1.8, marker="o", ms=4)
        axes.set_ylim(bottom=0)
        style_axes(axes, "Alignment error", "environment steps", "E (raw return)")
    for axes in every:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.axvline(0, color=FAINT, lw=1.0, ls="--")
    figure.legend(
        *returns.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return figure
