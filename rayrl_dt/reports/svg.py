"""Figures as SVG whose marks know what they stand for, so that a page can name them and light them up."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

__all__ = ["mark", "save_svg"]

_MARK = "mark:"


def mark(name: str) -> str:
    """Return the `gid` of an artist that stands for `name`; several artists may."""
    return f"{_MARK}{name}"


def save_svg(figure: Figure, path: Path, titles: Mapping[str, str]) -> None:
    """Write a figure as an SVG that can stand inside a page beside others.

    Args:
        figure: its marked artists (`mark`) become `<g data-name="NAME">`.
        path: of the file; its stem tells the identifiers of one drawing from those of another.
        titles: what is shown over each mark, by name.
    """
    buffer = io.StringIO()
    # Text stays text, and equal figures give equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    # What stands before is for files that hold nothing but the drawing.
    text = text[text.index("<svg") :]
    text = re.sub(rf'(\bid="|href="#|url\(#)(?!{_MARK})', rf"\g<1>{path.stem}-", text)
    for name, title in titles.items():
        named = f'<g data-name="{escape(name)}"><title>{escape(title)}</title>'
        text = text.replace(f'<g id="{_MARK}{name}">', named)
    path.write_text(text, encoding="utf-8")
