"""A report as a list of blocks, and numbers as a report shows them.

The blocks say what is shown, the renderers (`html`, `markdown`) say how; so both files always hold the same report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.figure import Figure

__all__ = [
    "MISSING",
    "Block",
    "Code",
    "Heading",
    "Notice",
    "Paragraph",
    "Picture",
    "Table",
    "Tiles",
    "decimals",
    "number",
    "percent",
]

MISSING = "\u2013"
"""Stands for an unknown value (an en dash)."""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 (the page's), 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Running text; `muted` is for captions and remarks."""

    text: str
    style: str = "plain"


@dataclass(frozen=True)
class Notice:
    """Something that the reader must not overlook: a title and one line each."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Tiles:
    """Headline figures: (label, value, remark) each."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """A table; the first column holds row names.

    `numeric` tables align the others to the right, `sortable` ones do so too, and a click on a column's head sorts
    them. A header of empty cells is not shown.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    style: str = "numeric"


@dataclass(frozen=True)
class Picture:
    """A figure, and the PNG file of the report's folder that it is written to.

    With `titles` it is an SVG file, whose marked artists (`svg.mark`) answer the mouse: what is shown over each mark.
    """

    name: str
    figure: Figure
    alt: str
    caption: str = ""
    titles: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Code:
    """Text to copy, folded away under `summary` if there is one."""

    text: str
    summary: str = ""


Block: TypeAlias = Heading | Paragraph | Notice | Tiles | Table | Picture | Code


def decimals(values: Iterable[float], *, digits: int = 5) -> int:
    """Return the places after the point that give the largest of `values` `digits` figures.

    At most 3, or as many as three figures take where all are smaller than 0.1. Raw returns that belong together share
    it, so that columns of them line up.
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    magnitude = math.floor(math.log10(largest)) if largest > 0 else 0
    return min(max(3, 2 - magnitude), max(0, digits - 1 - magnitude))


def number(value: object, places: int | None = None) -> str:
    """Format a value with thousands separators and a true minus sign; anything unknown becomes a dash.

    Args:
        value: a number; text stays as it is.
        places: digits after the point of a float; about four figures without trailing zeros if absent, with an
            exponent below a millionth.
    """
    if value is None or isinstance(value, bool):
        return MISSING
    if not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return MISSING
    if isinstance(value, int):
        places = 0
    if places is None and 0 < abs(value) < 1e-6:
        text = f"{value:.3g}"
    elif places is None:
        text = f"{value:,.{decimals([value], digits=4)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:,.{places}f}"
    # "-0.00" is a rounded zero.
    if not any(character in "123456789" for character in text):
        text = text.lstrip("-")
    return text.replace("-", "\u2212")


def percent(share: float | None) -> str:
    """Format a share in percent, with one decimal place."""
    return MISSING if share is None else f"{number(100 * share, 1)}%"
