"""Folders that appear whole or not at all: written aside under a hidden name, then renamed."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["publish", "replacing", "stage"]

_ABANDONED_AFTER_S = 24 * 3600


def stage(target: Path) -> Path:
    """Create an empty hidden folder beside `target`, to be filled and published.

    What killed processes left behind for the same target more than a day ago is deleted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-"
    for sibling in target.parent.iterdir():
        try:
            if sibling.name.startswith(prefix) and time.time() - sibling.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(sibling, ignore_errors=True)
        except FileNotFoundError:  # another process was faster
            continue
    # Not tempfile.mkdtemp: its folders are closed to the group, and data may be shared.
    aside = target.parent / f"{prefix}{uuid.uuid4().hex[:12]}"
    aside.mkdir()
    return aside


def publish(aside: Path, target: Path, *, replace: bool = False) -> bool:
    """Rename a filled folder to `target`.

    Args:
        aside: the folder from `stage`; left alone if the answer is False.
        target: its final place.
        replace: put it in the place of an existing folder; processes that map the old files keep them.

    Returns:
        False if `target` exists, perhaps since a moment ago, and is not to be replaced.

    Raises:
        OSError: renaming is impossible.
    """
    try:
        aside.rename(target)
    except OSError:
        if not target.exists():
            raise
    else:
        return True
    if not replace:
        return False
    old = stage(target)
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return True


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of `target` when it is whole, and is removed otherwise."""
    aside = stage(target)
    try:
        yield aside
        publish(aside, target, replace=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
