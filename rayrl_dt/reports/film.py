"""A film as an animated picture, its episodes side by side: what each was asked for, and has achieved so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from rayrl_dt.errors import UserError, suggest
from rayrl_dt.evaluation.film import Film, Take
from rayrl_dt.reports.document import number

__all__ = ["FORMATS", "video_file", "write_film"]

FORMATS: dict[str, dict[str, Any]] = {
    ".gif": {"disposal": 1},
    ".png": {},
    ".webp": {"quality": 80},
}
"""By the end of a file's name: what Pillow is told. A PNG is animated where browsers show it."""
_NAME = "policy.gif"
_MARGIN, _LINE = 4, 14
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)
_LONGEST_S, _SHORTEST_FRAME_S = 20.0, 0.02
# The end is to be seen before it starts over.
_END_S = 2.0


def video_file(path: Path) -> Path:
    """Return the file of a video that is to be written to a file or folder.

    Raises:
        UserError: the name ends as no format does that can be written.
    """
    if not path.suffix or path.is_dir():
        return path / _NAME
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"--video is {str(path)!r}; the name of a file ends otherwise.{suggest(path.suffix, FORMATS)}"
        )
    return path


def write_film(film: Film, path: Path) -> Path:
    """Write a film to a file; the end of its name says how."""
    count = max(len(take.frames) for take in film.takes)
    pages = [_page(film, index) for index in range(count)]
    seconds = min(film.seconds_per_frame, (_LONGEST_S - _END_S) / max(1, count - 1))
    shown = [max(_SHORTEST_FRAME_S, seconds)] * (count - 1) + [_END_S]
    path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(
        path,
        save_all=True,
        append_images=pages[1:],
        duration=[round(1000 * each) for each in shown],
        loop=0,
        **FORMATS[path.suffix.lower()],
    )
    return path


def _page(film: Film, index: int) -> Image.Image:
    """Return all episodes at a frame; one that is over shows its end."""
    height, width = film.takes[0].frames[0].shape[:2]
    width = max(width, 150)  # for the words
    page = Image.new(
        "RGB",
        (len(film.takes) * (width + _MARGIN) + _MARGIN, height + 3 * _MARGIN + 2 * _LINE),
        _PAPER,
    )
    pen = ImageDraw.Draw(page)
    for column, take in enumerate(film.takes):
        left = _MARGIN + column * (width + _MARGIN)
        shown = min(index, len(take.frames) - 1)
        pen.text((left, _MARGIN), f"asked for {number(take.target)}", fill=_INK)
        pen.text((left, _MARGIN + _LINE), _said(take, shown), fill=_FAINT)
        page.paste(Image.fromarray(take.frames[shown]), (left, 2 * _MARGIN + 2 * _LINE))
    return page


def _said(take: Take, shown: int) -> str:
    over = shown == len(take.frames) - 1
    step = take.length if over else shown * take.stride
    word = "achieved" if over else "so far"
    return f"{word} {number(take.so_far[shown])}, step {step:,}"
