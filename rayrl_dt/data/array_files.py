"""Arrays of an `.npz` file, read piece by piece into where they belong: none needs to fit in memory.

NumPy writes such files piece by piece, and reads each array whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any
from zipfile import ZipFile

import numpy as np

from rayrl_dt.data.spill import ArraySpace

__all__ = ["read_arrays"]

Array = np.ndarray[Any, Any]

_PIECE_BYTES = 1 << 20
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(archive: ZipFile, members: Mapping[str, str], space: ArraySpace) -> dict[str, Array]:
    """Returns arrays that `numpy.savez` wrote, in a space.

    Args:
        archive: the open file.
        members: the archive's member (`NAME.npy`) by the array's name.
        space: where the arrays go, together.

    Raises:
        ValueError: a member is not a plain array.
        EOFError: a member is truncated.
        KeyError: a member is missing.
        BadZipFile: the bytes of a member are not those that were written.
        UserError: the space has no room for them.
    """
    shapes = {}
    for name, member in members.items():
        with archive.open(member) as stream:
            shapes[name] = _read_header(stream)
    arrays = space.zeros(shapes)
    for name, array in arrays.items():
        with archive.open(members[name]) as stream:
            _read_header(stream)
            content = array.reshape(-1).view(np.uint8)
            for begin in range(0, len(content), _PIECE_BYTES):
                there = content[begin : begin + _PIECE_BYTES]
                piece = stream.read(len(there))
                if len(piece) < len(there):
                    raise EOFError(f"{members[name]} is truncated")
                there[:] = np.frombuffer(piece, np.uint8)
    return arrays


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads up to the first byte of the content; returns shape and dtype."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"array format {version}")
    shape, in_columns, dtype = _HEADERS[version](stream)
    if in_columns or dtype.hasobject:
        raise ValueError(f"no rows of plain numbers, but {dtype}")
    return shape, dtype
