"""HDF5 files of strangers: their numbers are read, and nothing else that such a file may point to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from rayrl_dt.errors import UserError, one_line

__all__ = ["array", "arrays", "child", "content", "open_file", "refuse_bombs"]

_BOMB_BYTES = 1 << 30
# Zeros compress to a thousandth, and no data set is all zeros.
_BOMB_RATIO = 500


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open a file for reading.

    Raises:
        UserError: it is no HDF5 file, or damaged where it is read.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # h5py's own, by what is broken
        raise UserError(
            f"{path} is damaged or not an HDF5 file ({one_line(error)}); delete it and get it again"
        ) from error


def child(group: Any, name: str) -> Any:
    """Return a group or an array of a group.

    Raises:
        UserError: it lies in another file.
        KeyError: there is none.
    """
    # h5py's own names for these questions open everything once more.
    kind = group.id.links.get_info(name.encode()).type
    if kind == h5py.h5l.TYPE_EXTERNAL:
        raise _outside(group, name)
    try:
        node = group[name]
    except KeyError as error:
        raise UserError(
            f"{group.file.filename}: {name} leads nowhere; get the file from its source"
        ) from error
    # A soft link may lead to a link out of the file.
    if kind != h5py.h5l.TYPE_HARD and node.file.filename != group.file.filename:
        raise _outside(group, name)
    if isinstance(node, h5py.Dataset):
        layout = node.id.get_create_plist()
        if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
            raise _outside(group, name)
    return node


def content(group: Any, name: str) -> Any:
    """Read an array, of whatever kind.

    Raises:
        UserError: it lies in another file, or would unpack to far more than the file holds.
        KeyError: there is none.
    """
    node = child(group, name)
    refuse_bombs(Path(group.file.filename), [node])
    return node[()]


def array(group: Any, name: str) -> Any:
    """Return an array of numbers, not read yet.

    Raises:
        UserError: it is a group or no numbers, or lies in another file.
        KeyError: there is none.
    """
    node = child(group, name)
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "fiub" or node.shape in (None, ()):
        kind = f"{node.dtype} of shape {node.shape}" if isinstance(node, h5py.Dataset) else "a group"
        raise UserError(
            f"{group.file.filename}: {name} is {kind}, not one number or row of numbers a step; convert the file"
        )
    return node


def arrays(group: Any, name: str) -> Iterator[Any]:
    """Yield the arrays at and below a name.

    Raises:
        UserError: one lies in another file.
        KeyError: there is nothing of that name.
    """
    node = child(group, name)
    if isinstance(node, h5py.Dataset):
        yield node
    else:
        for inner in node:
            yield from arrays(node, inner)


def refuse_bombs(path: Path, arrays: Iterable[Any]) -> None:
    """Check that arrays do not unpack to far more than the file holds.

    Raises:
        UserError: they do.
    """
    size = sum(each.nbytes for each in arrays)
    if size > _BOMB_BYTES and size > _BOMB_RATIO * path.stat().st_size:
        raise UserError(
            f"{path} would unpack to {size / 2**30:,.1f} GiB from {path.stat().st_size / 2**20:,.1f} MiB, which no "
            "data does; get the file from its source"
        )


def _outside(group: Any, name: str) -> UserError:
    return UserError(
        f"{group.file.filename}: {name} lies in another file, and links out of a data set are not followed; copy the "
        "numbers into the file"
    )
