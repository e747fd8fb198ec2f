"""A page as files: HTML that holds everything; Markdown, pictures and perhaps the figures as JSON beside it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayrl_dt.errors import UserError
from rayrl_dt.reports.document import Block, Heading, Picture
from rayrl_dt.reports.html import to_html
from rayrl_dt.reports.markdown import to_markdown
from rayrl_dt.reports.style import save_png
from rayrl_dt.reports.svg import save_svg

__all__ = ["result_folder", "write_page"]


def _make_folder(out: Path) -> Path:
    """Make the folder of a page, best before anything takes time.

    Raises:
        UserError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out} ({error.strerror}); choose another --out") from error
    return out


def result_folder(out: Path, settings: Mapping[str, Any]) -> Path:
    """Make the folder of a page with figures, unless it holds those of other settings; best before the work, too.

    Args:
        out: the folder.
        settings: JSON-ready, what the figures hang on; the `result.json` will have them, by the same names.

    Raises:
        UserError: it cannot be made, or its `result.json` has other settings.
    """
    file = _make_folder(out) / "result.json"
    if not file.exists():
        return out
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file} is there, and cannot be read; choose another --out, or remove it")
    for name, value in settings.items():
        if found.get(name) != value:
            raise UserError(
                f"{out} holds a result with {name} {found.get(name)!r} and not {value!r}; choose another --out"
            )
    return out


def write_page(
    out: Path,
    name: str,
    title: str,
    blocks: Sequence[Block],
    *,
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write `NAME.html`, `NAME.md` and their pictures into `out`, and return the page's path.

    The files are written aside and then moved into place, the page last; other files of `out` are left alone.

    `blocks` stand below the title; `result` goes into `result.json`, if there is one.

    Raises:
        UserError: `out` cannot be a folder.
    """
    _make_folder(out)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as folder:
        aside = Path(folder)
        for block in blocks:
            if not isinstance(block, Picture):
                continue
            if block.titles is None:
                save_png(block.figure, aside / block.name)
            else:
                save_svg(block.figure, aside / block.name, block.titles)
        blocks = [Heading(title, 1), *blocks]
        if result is not None:
            text = json.dumps(result, indent=2) + "\n"
            (aside / "result.json").write_text(text, encoding="utf-8")
        (aside / f"{name}.md").write_text(to_markdown(blocks), encoding="utf-8")
        (aside / f"{name}.html").write_text(to_html(title, blocks, aside), encoding="utf-8")
        for file in sorted(aside.iterdir(), key=lambda item: item.suffix == ".html"):
            os.replace(file, out / file.name)
    return out / f"{name}.html"
