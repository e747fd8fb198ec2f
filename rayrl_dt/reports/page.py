"""A page as files: HTML that holds everything, Markdown and pictures beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rayrl_dt.errors import UserError
from rayrl_dt.reports.document import (
    Block,
    Heading,
    to_html,
    to_markdown,
)

__all__ = ["write_page"]


def write_page(out: Path, name: str, title: str, compose: Callable[[Path], Sequence[Block]]) -> Path:
    """Write `NAME.html`, `NAME.md` and their pictures into `out`, and return the page's path.

    The files are written aside and then moved into place, the page last; other files of `out` are left alone.

    Args:
        out: the folder; made if it is not there.
        name: of the two files, without ending.
        title: of the page.
        compose: writes the pictures into the folder that it is given, and returns what stands below the title.

    Raises:
        UserError: `out` cannot be a folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the {name} folder {out} ({error.strerror}); choose another --out"
        ) from error
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as folder:
        aside = Path(folder)
        blocks = [Heading(title, 1), *compose(aside)]
        (aside / f"{name}.md").write_text(to_markdown(blocks), encoding="utf-8")
        (aside / f"{name}.html").write_text(to_html(title, blocks, aside), encoding="utf-8")
        for file in sorted(aside.iterdir(), key=lambda item: item.suffix == ".html"):
            os.replace(file, out / file.name)
    return out / f"{name}.html"
