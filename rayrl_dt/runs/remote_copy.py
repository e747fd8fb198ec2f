"""A run folder's copy on storage that outlives the machine: `s3://`, `gs://`, or whatever PyArrow writes to.

A run works in a local folder. After each checkpoint what has changed is copied, and a list of the files last: what the
list names is a whole run, whenever the machine is lost. `--resume` on another machine fetches it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pyarrow import ArrowException, fs

from rayrl_dt.data.staging import publish, stage
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.interop.run_files import CHECKPOINTS
from rayrl_dt.runs.checkpoints import latest_checkpoint, steps_of
from rayrl_dt.runs.inputs import locked

__all__ = ["RemoteCopy", "download", "file_state", "reaching", "storage", "upload", "working_folder"]

_LOG = logging.getLogger(__name__)
_FILES = "files.json"
"""On the other side: the files of a whole run."""
_OWNER = ".copy"
"""In the run folder: the URI that it is copied to."""
_LOCAL_ONLY = (".lock", _OWNER)


def working_folder(out: str | None, default: Path) -> tuple[Path, str | None]:
    """Return the local folder that a run works in, and the URI that it is copied to if `--out` is one.

    Raises:
        UserError: the URI names no folder.
    """
    if out is None or "://" not in out:
        return default if out is None else Path(out), None
    name = PurePosixPath(urlsplit(out).path).name
    if not name:
        raise UserError(f"--out is {out!r}, which names no folder; give one, as in s3://bucket/runs/hopper")
    return Path("runs") / name, out


def storage(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI, and the path there.

    Raises:
        UserError: it is no URI of a file system that PyArrow knows.
    """
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"the URI is {uri!r}, which cannot be used ({one_line(error)}); give a folder, or a URI as in "
            "s3://bucket/runs/hopper"
        ) from error
    return system, path.rstrip("/")


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn what a file system raises into one line.

    Raises:
        UserError: something could not be read or written.
    """
    try:
        yield
    except (ArrowException, OSError) as error:
        raise UserError(
            f"{uri} cannot be reached ({one_line(error)}); check name, credentials and network"
        ) from error


class RemoteCopy:
    """The copy of a run folder.

    Args:
        uri: of the copy.
        folder: the run folder, on this machine.

    Raises:
        UserError: as `storage`, or it cannot be reached.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri.rstrip("/"), folder
        self._system, self._root = storage(uri)
        self._copied: dict[str, tuple[int, int]] = {}
        """Size and time of the files as they were when they were copied or fetched."""
        with reaching(uri):
            self._there = self._files()

    def check(self, *, resume: bool) -> None:
        """Make ready for a run: fetch what the folder lacks of the copy if it is to be resumed.

        Raises:
            UserError: a new run would replace the copy, or the folder is that of another run, or of one under way.
        """
        owner, there = self.folder / _OWNER, self.folder.exists()
        mine = owner.exists() and owner.read_text().rstrip("/") == self.uri
        if not mine and there and any(self.folder.iterdir()):
            raise UserError(
                f"{self.folder}, where a run works that is copied to {self.uri}, is another run's; move it away, or "
                "give --out another name"
            )
        if not resume and self._there:
            raise UserError(f"{self.uri} exists already; continue it with --resume or choose another --out")
        if resume and not self._there and not there:
            raise UserError(f"{self.uri} has nothing to resume; start it without --resume")
        if resume and self._there:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim()  # first: what is fetched in part is this run's
            with locked(self.folder, what="run"), reaching(self.uri):
                self._fetch()

    def claim(self) -> None:
        """Mark the folder as this run's, which it is from its first moment on: what is lost then is started anew."""
        (self.folder / _OWNER).write_text(self.uri)

    def push(self) -> None:
        """Copy what has changed; if that fails, say so: the next checkpoint tries again."""
        try:
            self.finish()
        except UserError as error:
            _LOG.warning("%s. The run goes on in %s.", error, self.folder)

    def finish(self) -> None:
        """Copy what has changed, and delete there what was copied or fetched before and is not here any more.

        Raises:
            UserError: it cannot be reached; the run is whole in its folder.
        """
        now = {}
        for path in self._local():
            with suppress(FileNotFoundError):  # what others write beside the run comes and goes
                now[str(path.relative_to(self.folder))] = file_state(path)
        with reaching(self.uri):
            self.claim()
            for name, state in now.items():
                if self._copied.get(name) != state:
                    upload(self.folder / name, self._system, f"{self._root}/{name}")
                    self._copied[name] = state
            gone = self._copied.keys() - now.keys()
            others = {name: size for name, size in self._there.items() if name not in gone}
            self._there = others | {name: size for name, (size, _) in now.items()}
            with self._system.open_output_stream(f"{self._root}/{_FILES}") as stream:
                stream.write(json.dumps(self._there).encode())
            for name in gone:
                del self._copied[name]
                self._system.delete_file(f"{self._root}/{name}")

    def _local(self) -> Iterator[Path]:
        """Yield the files of the run, without what is being written."""
        for folder, below, files in os.walk(self.folder):
            below[:] = [name for name in below if not name.startswith(".")]
            yield from (Path(folder) / name for name in files if name not in _LOCAL_ONLY)

    def _fetch(self) -> None:
        """Fetch what the folder lacks: checkpoints whole, the newest last, so that a fetch that was cut off is resumed.

        Files outside checkpoints are those of the newest: all are fetched if it is to come, and none is replaced where
        the folder has a newer one.
        """
        checkpoints, others = self._parts()
        newest = latest_checkpoint(self.folder)
        here = -1 if newest is None else int(newest.name)
        there = max(map(int, checkpoints), default=-1)
        aside = stage(self.folder / "fetched")
        try:
            for name in others:
                if here < there or self._lacks(name, cut_off=here == there):
                    self._download(name, aside / name)
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (aside / name).replace(self.folder / name)
                    self._copied[name] = file_state(self.folder / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for checkpoint in sorted(checkpoints, key=int):
            names = checkpoints[checkpoint]
            if any(self._lacks(name, cut_off=True) for name in names):
                self._fetch_checkpoint(checkpoint, names)

    def _fetch_checkpoint(self, checkpoint: str, names: list[str]) -> None:
        target = self.folder / CHECKPOINTS / checkpoint
        aside = stage(target)
        try:
            for name in names:
                self._download(name, aside / Path(name).relative_to(CHECKPOINTS, checkpoint))
            if target.exists():  # in part, by an earlier version
                shutil.rmtree(target)
            publish(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._copied |= {name: file_state(self.folder / name) for name in names}

    def _download(self, name: str, path: Path) -> None:
        download(self._system, f"{self._root}/{name}", path)

    def _lacks(self, name: str, *, cut_off: bool) -> bool:
        """Return whether a listed file is not here, or, if asked, was cut off: it is shorter than listed."""
        path = self.folder / name
        return not path.is_file() or (cut_off and path.stat().st_size < self._there[name])

    def _parts(self) -> tuple[dict[str, list[str]], list[str]]:
        """Return the listed files of checkpoints by the names of their folders, and all others."""
        checkpoints: dict[str, list[str]] = {}
        others = []
        for name in self._there:
            parts = Path(name).parts
            if parts[0] == CHECKPOINTS and len(parts) > 2 and steps_of(parts[1]) is not None:
                checkpoints.setdefault(parts[1], []).append(name)
            else:
                others.append(name)
        return checkpoints, others

    def _files(self) -> dict[str, int]:
        """Return the files of the copy with their sizes; none if there is no whole copy."""
        path = f"{self._root}/{_FILES}"
        if self._system.get_file_info(path).type != fs.FileType.File:
            return {}
        with self._system.open_input_stream(path) as stream:
            text = stream.read()
        try:
            found = {str(name): int(size) for name, size in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.uri}/{_FILES} is damaged ({one_line(error)}); restore it, or choose another --out"
            ) from error
        for name in found:
            if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
                raise UserError(
                    f"{self.uri}/{_FILES} lists {name!r}, which lies elsewhere; nothing is fetched"
                )
        return found


def upload(path: Path, system: fs.FileSystem, target: str) -> None:
    """Copy a file of this machine, with the folders that it lies in there."""
    system.create_dir(target.rpartition("/")[0], recursive=True)
    fs.copy_files(str(path), target, fs.LocalFileSystem(), system)


def download(system: fs.FileSystem, source: str, path: Path) -> None:
    """Copy a file to this machine, with the folders that it lies in here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fs.copy_files(source, str(path), system, fs.LocalFileSystem())


def file_state(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written: its size, and its time."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
