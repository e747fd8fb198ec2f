"""Arrays of an `.npz` file, read piece by piece into where they belong: none needs to fit in memory.

NumPy writes such files piece by piece, and reads each array whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from tokenize import TokenError
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile
from zlib import error as ZlibError

import numpy as np

from rayrl_dt.errors import UserError

__all__ = ["BROKEN", "ArraySpace", "read_arrays", "read_header"]

Array = np.ndarray[Any, Any]

BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile, ZlibError)
"""What reading a damaged `.npz` file raises; RuntimeError where a bit says encrypted, or another version."""

_PIECE_BYTES = 1 << 20
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(archive: ZipFile, members: Mapping[str, str], space: ArraySpace) -> dict[str, Array]:
    """Return arrays that `numpy.savez` wrote, in a space.

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
            shape, dtype = shapes[name] = read_header(stream)
            size = stream.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
        info = archive.getinfo(member)
        # Before there is room for what the header claims.
        if info.file_size != size or info.compress_type != ZIP_STORED:
            raise ValueError(f"{member} does not hold {shape} numbers")
    arrays = space.zeros(shapes)
    for name, array in arrays.items():
        with archive.open(members[name]) as stream:
            read_header(stream)
            content = array.reshape(-1).view(np.uint8)
            for begin in range(0, len(content), _PIECE_BYTES):
                there = content[begin : begin + _PIECE_BYTES]
                piece = stream.read(len(there))
                if len(piece) < len(there):
                    raise EOFError(f"{members[name]} is truncated")
                there[:] = np.frombuffer(piece, np.uint8)
    return arrays


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the header of an array up to the first byte of its content; return shape and dtype.

    Raises:
        ValueError: it is no plain array of rows.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"array format {version}")
    try:
        shape, in_columns, dtype = _HEADERS[version](stream)
    except TokenError as error:  # of numpy's parser, beside ValueError
        raise ValueError(f"array header {error}") from error
    if in_columns or dtype.hasobject:
        raise ValueError(f"no rows of plain numbers, but {dtype}")
    return shape, dtype


_ZEROS = memoryview(bytes(1 << 20))


class ArraySpace:
    """Makes arrays that belong together.

    The files have no name: the operating system frees them with the last array that is mapped from them, however the
    process ends. `TMPDIR` chooses their disk.

    Args:
        memory_bytes: arrays that are larger than this together go to files; None for never.
    """

    def __init__(self, memory_bytes: int | None) -> None:
        self.memory_bytes = memory_bytes

    def zeros(self, shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> dict[str, Array]:
        """Return arrays of zeros.

        Args:
            shapes: shape and dtype by name.

        Raises:
            UserError: the disk has no room for them.
        """
        total = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
        if self.memory_bytes is None or total <= self.memory_bytes:
            return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        return {name: _mapped_zeros(shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


def _mapped_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = max(int(np.prod(shape)) * dtype.itemsize, 1)
    with tempfile.TemporaryFile(prefix="rayrl_dt-") as file:
        try:
            # Written, not truncated: a sparse file would fail with a bus error at the first page without room.
            for begin in range(0, size, len(_ZEROS)):
                file.write(_ZEROS[: size - begin])
            file.flush()
        except OSError as error:
            raise UserError(
                f"no room for {size / 2**30:.1f} GiB in {tempfile.gettempdir()} ({error.strerror}); set TMPDIR to a "
                "larger disk, or lower online.replay_capacity_trajectories"
            ) from error
        # numpy declares names of files only.
        return np.memmap(file, dtype, "r+", shape=shape)  # type: ignore[call-overload,no-any-return]
