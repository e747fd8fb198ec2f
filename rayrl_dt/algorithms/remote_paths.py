"""Checkpoints on paths that are not on this machine (`s3://`, `gs://`): written and read by way of a local folder.

RLlib writes its own files to any of PyArrow's file systems; what we keep beside them are files like any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

__all__ = ["fetched", "sent"]


@contextmanager
def sent(path: Any, filesystem: fs.FileSystem | None) -> Iterator[Path]:
    """Give a local folder to fill, which is copied to `path` if that is elsewhere.

    Args:
        path: local, or a URI, or a path on `filesystem`.
        filesystem: PyArrow's; None where the path says it.
    """
    local = _local(path, filesystem)
    if local is not None:
        yield local
        return
    with tempfile.TemporaryDirectory() as aside:
        yield Path(aside)
        target, place = _elsewhere(path, filesystem)
        target.create_dir(place, recursive=True)
        fs.copy_files(aside, place, destination_filesystem=target)


@contextmanager
def fetched(path: Any, filesystem: fs.FileSystem | None) -> Iterator[Path]:
    """Give a local folder with what `path` holds; arguments as for `sent`."""
    local = _local(path, filesystem)
    if local is not None:
        yield local
        return
    with tempfile.TemporaryDirectory() as aside:
        source, place = _elsewhere(path, filesystem)
        fs.copy_files(place, aside, source_filesystem=source)
        yield Path(aside)


def _local(path: Any, filesystem: fs.FileSystem | None) -> Path | None:
    """Return the path if it is one of this machine."""
    if filesystem is None and "://" not in str(path):
        return Path(path)
    if isinstance(filesystem, fs.LocalFileSystem):
        return Path(path)
    return None


def _elsewhere(path: Any, filesystem: fs.FileSystem | None) -> tuple[fs.FileSystem, str]:
    if filesystem is not None:
        return filesystem, str(path)
    found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(str(path))
    return found
