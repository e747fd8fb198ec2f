"""Renders a report as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rayrl_dt.reports import script
from rayrl_dt.reports.document import Block, Heading, Notice, Paragraph, Picture, Table, Tiles
from rayrl_dt.reports.stylesheet import STYLE

__all__ = ["to_html"]

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


def to_html(title: str, blocks: Sequence[Block], pictures: Path) -> str:
    """Return the page, with the PNG files of folder `pictures` embedded."""
    body = "\n".join(_html(block, pictures) for block in blocks)
    # A page without anything to act on stays free of scripts.
    acts = any(
        block.style == "sortable" if isinstance(block, Table) else block.name.endswith(".svg")
        for block in blocks
        if isinstance(block, (Table, Picture))
    )
    style, code = STYLE, ""
    if acts:
        style, code = STYLE + script.STYLE, f"<script>\n{script.SCRIPT}</script>\n"
    return _PAGE.format(title=escape(title), style=style, body=body, script=code)


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
