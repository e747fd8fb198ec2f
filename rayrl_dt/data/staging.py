"""Folders that appear whole or not at all: written aside under a hidden name, then renamed.

A folder that is there is replaced only if it is empty or holds the file by which its kind is known.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rayrl_dt.errors import UserError

__all__ = ["check_replaceable", "is_staged", "publish", "replacing", "stage", "sweep"]

_LOG = logging.getLogger(__name__)
_ABANDONED_AFTER_S = 24 * 3600
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""Why a folder cannot be renamed: something has that name already."""
_STAGED = re.compile(r"\.[\w.-]+-[0-9a-f]{12}$")
_HERE, _EXCHANGE = -100, 2
"""`AT_FDCWD` and `RENAME_EXCHANGE` of Linux."""


def stage(target: Path) -> Path:
    """Create an empty hidden folder beside `target`, to be filled and published.

    What killed processes left behind for the same target more than a day ago is deleted.
    """
    target = _place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, glob.escape(target.name))
    aside = _aside(target)
    # Not tempfile.mkdtemp: its folders are closed to the group, and data may be shared.
    aside.mkdir()
    return aside


def is_staged(name: str) -> bool:
    """Return whether a folder of that name is one from `stage`."""
    return _STAGED.match(name) is not None


def sweep(folder: Path, targets: str) -> None:
    """Delete what killed processes left in a folder more than a day ago.

    Args:
        folder: in which they wrote; it need not exist.
        targets: pattern of the names that they would have published.
    """
    for rest in folder.glob(f".{targets}-{'[0-9a-f]' * 12}"):
        try:
            # What a writer copies brings its own mtime along, and a file that grows changes no folder.
            touched = max(path.lstat().st_ctime for path in (rest, *rest.rglob("*")))
        except FileNotFoundError:  # another process was faster
            continue
        if time.time() - touched > _ABANDONED_AFTER_S:
            shutil.rmtree(rest, ignore_errors=True)


def check_replaceable(target: Path, header: str) -> None:
    """Check that nothing is lost where a folder is written.

    Args:
        target: where it will be.
        header: the file, by its path in the folder, that all folders of its kind hold.

    Raises:
        UserError: `target` is there, and neither empty nor of that kind.
    """
    with _alone(_place(target).parent):
        _check(target, header)


def publish(aside: Path, target: Path, *, header: str | None = None) -> bool:
    """Rename a filled folder to `target`.

    Args:
        aside: the folder from `stage`; left alone if the answer is False.
        target: its final place.
        header: put it in the place of an existing folder that holds this file (see `check_replaceable`); processes
            that map the old files keep them. None replaces nothing.

    Returns:
        False if `target` exists, perhaps since a moment ago, and is not to be replaced.

    Raises:
        UserError: what is there is not to be replaced by such a folder.
        OSError: renaming is impossible.
    """
    place = _place(target)
    with _alone(place.parent):
        try:
            aside.rename(place)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return True
        if header is None:
            return False
        _check(target, header)
        if _exchanged(aside, place):
            old = aside
        else:
            old = _aside(place)
            place.rename(old)
            try:
                aside.rename(place)
            except OSError:
                old.rename(place)
                raise
    shutil.rmtree(old, ignore_errors=True)
    return True


@contextmanager
def replacing(target: Path, *, header: str) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of `target` when it is whole, and is removed otherwise.

    Raises:
        UserError: as `check_replaceable`, before anything is written.
    """
    check_replaceable(target, header)
    aside = stage(target)
    try:
        yield aside
        publish(aside, target, header=header)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check(target: Path, header: str) -> None:
    if not target.exists() or (target / header).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise UserError(
            f"{target} exists and holds no {header}, so it is not replaced; choose another folder, or move it away"
        )


def _place(target: Path) -> Path:
    """Return where a folder lies that may be linked to from elsewhere."""
    return target.resolve() if target.is_symlink() else target


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}-{uuid.uuid4().hex[:12]}"


def _exchanged(one: Path, two: Path) -> bool:
    """Return whether two folders have changed places, with no moment in which one is missing; Linux can do it."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(two), _EXCHANGE)
    return done == 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have others of this machine wait who rename within a folder. It is its own lock: no file stays behind."""
    with ExitStack() as held:
        try:
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        except (ImportError, OSError) as error:
            _LOG.debug(
                "%s cannot be locked (%s): two writers at once may be in each other's way.", folder, error
            )
        yield
