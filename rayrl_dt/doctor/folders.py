"""The folders: where data, caches and runs are kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayrl_dt.data import sources
from rayrl_dt.data.readers import minari_local
from rayrl_dt.doctor.check import GIB, Check, size, verdict
from rayrl_dt.errors import one_line
from rayrl_dt.runs.remote_copy import reaching, storage

__all__ = [
    "STORAGE_REMEDY",
    "URI_REMEDY",
    "bytes_of",
    "cache",
    "data",
    "minari",
    "probe_folder",
    "probe_uri",
    "reachable",
    "writable",
]

STORAGE_REMEDY = "choose a writable folder with --storage; on a cluster, one that all nodes share"
URI_REMEDY = "check name, credentials and network, on a cluster those of every node"
_MIN_FREE_BYTES = 2 * GIB


def data(source: str) -> list[Check]:
    """Say how large a source on this machine is."""
    return [Check("data", "ok", f"{source} is here, {size(bytes_of(source))}")]


def bytes_of(source: str) -> int:
    """Return the size of a source's files on this machine.

    Raises:
        UserError: they are not here.
    """
    return sum(file.stat().st_size for file in sources.locate(source))


def minari() -> list[Check]:
    """Check whether there are local Minari data sets."""
    root = minari_local.datasets_root()
    count = len(minari_local.list_local()) if root.is_dir() else 0
    found = f"{root} {'holds no data set' if root.is_dir() else 'does not exist yet'}"
    if count:
        found = f"{count} data set{'s' if count > 1 else ''} in {root}"
    remedy = "make one with `rayrl-dt data make RECIPE`"
    return verdict("Minari data", found, good=count > 0, remedy=remedy)


def cache() -> list[Check]:
    """Check whether flat arrays can be cached."""
    return writable("cache", sources.cache_root(), "set RAYRL_DT_CACHE to a writable folder")


def writable(name: str, folder: Path, remedy: str) -> list[Check]:
    """Check whether a folder, or the one that it would be made in, can be written to and has room."""
    try:
        with probe_folder(folder) as probe:
            _write_rename_delete(probe)
            free = shutil.disk_usage(probe).free
    except OSError as error:
        return [Check(name, "error", f"{folder} is not writable: {one_line(error)}", remedy)]
    found = f"{folder} is writable, {size(free)} free" + ("" if folder.is_dir() else " (it will be created)")
    return verdict(name, found, good=free >= _MIN_FREE_BYTES, remedy=f"free some space, or {remedy}")


@contextmanager
def probe_folder(folder: Path) -> Iterator[Path]:
    """Make a folder inside `folder`, or inside its nearest parent that exists, and remove it afterwards."""
    existing = folder.expanduser().absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    with tempfile.TemporaryDirectory(prefix=".rayrl_dt-probe-", dir=existing) as probe:
        yield Path(probe)


def reachable(uri: str) -> list[Check]:
    """Check whether this machine can keep runs at a URI."""
    probe_uri(uri)
    return [Check("storage", "ok", f"{uri} can be written and read from here")]


def probe_uri(uri: str) -> None:
    """Write a file below a URI, read it back, and delete it.

    Raises:
        UserError: that cannot be done.
    """
    system, root = storage(uri)
    name = f".rayrl_dt-probe-{uuid.uuid4().hex}"
    with reaching(uri):
        system.create_dir(root, recursive=True)
        with system.open_output_stream(f"{root}/{name}") as stream:
            stream.write(name.encode())
        with system.open_input_stream(f"{root}/{name}") as stream:
            if stream.read() != name.encode():
                raise OSError("a file reads back differently")
        system.delete_file(f"{root}/{name}")


def _write_rename_delete(folder: Path) -> None:
    """Do what a run needs of its storage: replace files atomically."""
    first, second = folder / "probe.tmp", folder / "probe.txt"
    first.write_text(folder.name)
    first.replace(second)
    if second.read_text() != folder.name:
        raise OSError("a file reads back differently")
    second.unlink()
