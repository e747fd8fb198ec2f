"""Builds a trajectory store on disk, episode by episode, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from rayrl_dt.data import returns
from rayrl_dt.data.staging import publish, stage
from rayrl_dt.data.store import DatasetInfo, episode_arrays, fit_normalizer
from rayrl_dt.data.store_files import ARRAYS, checksum, write_header
from rayrl_dt.errors import UserError
from rayrl_dt.types import Trajectory

__all__ = ["StoreWriter"]

Array = np.ndarray[Any, Any]
_BUFFER_BYTES = 1 << 20


class StoreWriter:
    """Writes a store that `TrajectoryStore.open` maps, without ever holding more than one episode.

    A context manager: the folder appears, whole, when the block ends, and not at all if it raises.

        with StoreWriter(folder, info) as writer:
            for trajectory in trajectories:
                writer.append(trajectory)

    Args:
        folder: where the store will be. If another process has put a store there meanwhile, that one stays:
            the two were made from the same data.
        info: describes the data.
    """

    def __init__(self, folder: str | os.PathLike[str], info: DatasetInfo) -> None:
        self.folder = Path(folder)
        self.info = info
        self._aside = stage(self.folder)
        self._columns: dict[str, _Column] = {}
        self._lengths: list[int] = []
        self._terminated: list[bool] = []

    def append(self, trajectory: Trajectory) -> None:
        """Add one episode.

        Raises:
            UserError: it does not fit the spaces, or the first episode.
            OSError: the disk is full or not writable.
        """
        rows = episode_arrays(trajectory, self.info, len(self._lengths))
        rows["returns_to_go"] = returns.returns_to_go(
            rows["rewards"], np.zeros(1, np.int64), np.array([len(trajectory)])
        )
        for name, values in rows.items():
            if name not in self._columns:
                self._columns[name] = _Column(self._aside / f"{name}.npy", values)
            elif self._columns[name].dtype != values.dtype:
                raise UserError(
                    f"{self.info.source}: episode {len(self._lengths)} has {values.dtype} {name}, the "
                    f"first has {self._columns[name].dtype}; make them the same"
                )
            self._columns[name].append(values)
        self._lengths.append(len(trajectory))
        self._terminated.append(trajectory.terminated)

    def close(self) -> Path:
        """Complete the store and move it into place.

        Raises:
            UserError: no episode was appended.
            OSError: the disk is full or not writable.
        """
        if not self._lengths:
            raise UserError(f"{self.info.source} holds no episodes; choose another data set")
        for column in self._columns.values():
            column.close()
        lengths = np.array(self._lengths, np.int64)
        table = {
            "starts": np.cumsum(lengths) - lengths,
            "lengths": lengths,
            "terminated": np.array(self._terminated, bool),
        }
        for name, values in table.items():
            np.save(self._aside / f"{name}.npy", values)
        checksums = {name: column.checksum for name, column in self._columns.items()}
        checksums |= {name: checksum(values) for name, values in table.items()}
        assert table.keys() | self._columns.keys() == set(ARRAYS)
        observations = np.load(self._aside / "observations.npy", mmap_mode="r")
        write_header(self._aside, self.info, fit_normalizer(observations), checksums)
        publish(self._aside, self.folder)
        return self.folder

    def discard(self) -> None:
        """Delete what was written so far."""
        for column in self._columns.values():
            column.abandon()
        shutil.rmtree(self._aside, ignore_errors=True)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()


class _Column:
    """One `.npy` file that grows; NumPy reserves room in the header for a longer first axis."""

    def __init__(self, path: Path, first: Array) -> None:
        self.dtype = first.dtype
        self._row_shape = first.shape[1:]
        self._rows = 0
        self.checksum = 0
        self._file: BinaryIO = path.open("wb", buffering=_BUFFER_BYTES)
        self._begin = self._write_header()

    def _write_header(self) -> int:
        description = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, description)
        return self._file.tell()

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values).data)
        self.checksum = checksum(values, self.checksum)
        self._rows += len(values)

    def close(self) -> None:
        self._file.seek(0)
        if self._write_header() != self._begin:
            raise OSError("the .npy header outgrew its room")
        self._file.close()

    def abandon(self) -> None:
        # Closing flushes, which fails again on a full disk.
        with contextlib.suppress(OSError):
            self._file.close()
