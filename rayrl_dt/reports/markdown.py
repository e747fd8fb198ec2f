"""Renders a report as Markdown; pictures are linked by their file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from rayrl_dt.reports.document import Block, Heading, Notice, Paragraph, Picture, Table, Tiles

__all__ = ["to_markdown"]


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the report as Markdown; pictures are linked by their file names."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


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
