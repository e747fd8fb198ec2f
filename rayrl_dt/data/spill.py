"""Arrays in memory up to a bound, and mapped from temporary files beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from rayrl_dt.errors import UserError

__all__ = ["ArraySpace"]

Array = np.ndarray[Any, Any]

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
        """Returns arrays of zeros.

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
