"""A report as a list of blocks, rendered as one self-contained HTML page or as Markdown.

The blocks say what is shown, the two renderers say how; so both files always hold the same report.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeAlias

from rayrl_dt.reports import script as interaction

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
    "to_html",
    "to_markdown",
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
    """A PNG or SVG file of the report's folder; the parts of an SVG (`save_drawing`) answer the mouse."""

    name: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Text to copy, folded away under `summary` if there is one."""

    text: str
    summary: str = ""


Block: TypeAlias = Heading | Paragraph | Notice | Tiles | Table | Picture | Code


def decimals(values: Iterable[float], *, digits: int = 5) -> int:
    """Return the places after the point, at most 3, that give the largest of `values` `digits` figures.

    Raw returns that belong together share it, so that columns of them line up.
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    magnitude = math.floor(math.log10(largest)) if largest > 0 else 0
    return min(3, max(0, digits - 1 - magnitude))


def number(value: object, places: int | None = None) -> str:
    """Format a value with thousands separators and a true minus sign; anything unknown becomes a dash.

    Args:
        value: a number; text stays as it is.
        places: digits after the point of a float; about four figures without trailing zeros if absent.
    """
    if value is None or isinstance(value, bool):
        return MISSING
    if not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return MISSING
    if isinstance(value, int):
        places = 0
    if places is None:
        text = f"{value:,.{decimals([value], digits=4)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:,.{places}f}"
    # "-0.00" is a rounded zero.
    if not any(character in "123456789" for character in text):
        text = text.lstrip("-")
    return text.replace("-", "\u2212")


def to_html(title: str, blocks: Sequence[Block], pictures: Path) -> str:
    """Return the page, with the PNG files of folder `pictures` embedded."""
    body = "\n".join(_html(block, pictures) for block in blocks)
    # A page without anything to act on stays free of scripts.
    acts = any(
        block.style == "sortable" if isinstance(block, Table) else block.name.endswith(".svg")
        for block in blocks
        if isinstance(block, (Table, Picture))
    )
    page = _PAGE.replace("{title}", escape(title))
    page = page.replace("{style}", _STYLE + (interaction.STYLE if acts else ""))
    page = page.replace("{script}", f"<script>\n{interaction.SCRIPT}</script>\n" if acts else "")
    return page.replace("{body}", body)


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the report as Markdown; pictures are linked by their file names."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _html(block: Block, pictures: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f'<p class="{block.style}">{escape(block.text)}</p>'
    if isinstance(block, Notice):
        lines = "".join(f"<li>{escape(line)}</li>" for line in block.lines)
        return f"<aside><strong>{escape(block.title)}</strong><ul>{lines}</ul></aside>"
    if isinstance(block, Tiles):
        tiles = "".join(
            f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd><small>{escape(remark)}</small></div>"
            for label, value, remark in block.items
        )
        return f'<dl class="tiles">{tiles}</dl>'
    if isinstance(block, Table):
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in block.header)
        rows = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in block.rows
        )
        head = f"<thead><tr>{head}</tr></thead>" if any(block.header) else ""
        style = "numeric sortable" if block.style == "sortable" else block.style
        table = f'<table class="{style}">{head}<tbody>{rows}</tbody></table>'
        return f'<div class="scroll" tabindex="0">{table}</div>'
    if isinstance(block, Picture):
        caption = f"<figcaption>{escape(block.caption)}</figcaption>" if block.caption else ""
        if block.name.endswith(".svg"):
            drawing = (pictures / block.name).read_text(encoding="utf-8")
            return f'<figure role="group" aria-label="{escape(block.alt)}">{drawing}{caption}</figure>'
        data = base64.b64encode((pictures / block.name).read_bytes()).decode()
        return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(block.alt)}">{caption}</figure>'
    code = f"<pre>{escape(block.text.rstrip())}</pre>"
    if not block.summary:
        return code.replace("<pre>", '<pre class="wrap">', 1)
    return f"<details><summary>{escape(block.summary)}</summary>{code}</details>"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Notice):
        return "\n".join([f"> **{block.title}**", ">", *(f"> - {line}" for line in block.lines)])
    if isinstance(block, Tiles):
        return "\n".join(f"- {label}: **{value}** ({remark})" for label, value, remark in block.items)
    if isinstance(block, Table):
        ruler = ["---", *("---" if block.style == "plain" else "--:" for _ in block.header[1:])]
        return "\n".join(_row(cells) for cells in (block.header, ruler, *block.rows))
    if isinstance(block, Picture):
        return f"![{block.alt}]({block.name})" + (f"\n\n*{block.caption}*" if block.caption else "")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", block.text))])
    code = f"{fence}\n{block.text.rstrip()}\n{fence}"
    return (
        f"<details><summary>{escape(block.summary)}</summary>\n\n{code}\n\n</details>"
        if block.summary
        else code
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in cells) + " |"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
{script}</body>
</html>
"""

_STYLE = """:root {
  color-scheme: light dark;
  --ink: #1f2328; --faint: #59636e; --line: #d9dee4; --page: #ffffff; --panel: #f6f8fa; --accent: #0072b2;
  --warn: #fff8e6; --warn-line: #e0b44c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3; --faint: #9aa5b1; --line: #333b45; --page: #0f1419; --panel: #181e25; --accent: #56b4e9;
    --warn: #2a2412; --warn-line: #8a6d1f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
}
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.25; letter-spacing: -0.01em; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; margin: 0 0 0.25rem; }
h2 { font-size: 1.35rem; margin: 3.25rem 0 0.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
h1 + h2, h1 + p + h2 { margin-top: 1.75rem; padding-top: 0; border: 0; }
h3 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
p { margin: 0.6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.muted, figcaption, small { color: var(--faint); font-size: 0.875rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.75rem; margin: 1.25rem 0;
}
.tiles div, pre { border: 1px solid var(--line); border-radius: 10px; background: var(--panel); }
.tiles div { padding: 0.8rem 1rem; }
.tiles dt { font-size: 0.85rem; color: var(--faint); }
.tiles dd { margin: 0.1rem 0; font-size: 1.6rem; font-weight: 650; line-height: 1.3; }
.tiles small { display: block; line-height: 1.4; }
aside {
  border: 1px solid var(--warn-line); border-radius: 10px; background: var(--warn);
  padding: 0.75rem 1rem; margin: 1rem 0;
}
aside ul { margin: 0.25rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0.75rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
table, .tiles dd { font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0.6rem; border-bottom: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; border-bottom-width: 2px; }
tbody th { font-weight: 500; }
th:first-child { padding-left: 0; }
.numeric td, .numeric thead th:not(:first-child) { text-align: right; }
.numeric td, .numeric tbody th { white-space: nowrap; }
.plain td { overflow-wrap: anywhere; }
.plain tbody th { color: var(--faint); white-space: nowrap; width: 1%; padding-right: 1.5rem; }
figure { margin: 1.25rem 0; }
img {
  display: block; width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 10px; padding: 0.5rem;
}
figcaption { margin-top: 0.4rem; max-width: 46rem; }
pre {
  margin: 0.5rem 0; padding: 0.8rem 1rem; overflow-x: auto;
  font: 0.82rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); font-weight: 550; }
@media print { h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }"""
