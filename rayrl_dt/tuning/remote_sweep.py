"""A sweep on storage that outlives the cluster (`s3://`, `gs://`, ...), where Ray Tune keeps its trials.

What is read of it (reports, policies) is fetched into a local folder; the table and the page are made there, and copied
back. What trials go on from stays where it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyarrow import fs

from rayrl_dt.errors import UserError
from rayrl_dt.runs.remote_copy import download, file_state, reaching, storage, upload
from rayrl_dt.tuning.conclusion import SWEEP
from rayrl_dt.tuning.trial import ALGORITHM

__all__ = ["RemoteSweep"]


class RemoteSweep:
    """A sweep that is kept elsewhere.

    Args:
        uri: of its folder.
        folder: the local one.

    Attributes:
        system: the file system, for Ray Tune.
        path: the folder there.

    Raises:
        UserError: the URI is none that PyArrow knows, it cannot be reached, or lists files that lie elsewhere.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri, folder
        self.system, self.path = storage(uri)
        self._states: dict[Path, tuple[int, int]] = {}

    def begin(self, text: str) -> None:
        """Keep the sweep's file.

        Raises:
            UserError: another sweep is there.
        """
        with reaching(self.uri):
            target = f"{self.path}/{SWEEP}"
            if self.system.get_file_info(target).type != fs.FileType.NotFound:
                raise UserError(
                    f"{self.uri} exists already; continue it with --resume or choose another --out"
                )
            self.system.create_dir(self.path, recursive=True)
            with self.system.open_output_stream(target) as stream:
                stream.write(text.encode())

    def fetch(self) -> None:
        """Bring the local folder up to date."""
        with reaching(self.uri):
            found = self.system.get_file_info(
                fs.FileSelector(self.path, recursive=True, allow_not_found=True)
            )
            files = {
                Path(os.path.relpath(info.path, self.path)): info.path
                for info in found
                if info.type == fs.FileType.File
            }
            for name in files:
                if ".." in name.parts:
                    raise UserError(
                        f"{self.uri} has a file '{name}', which lies elsewhere; nothing is fetched"
                    )
            for name, path in files.items():
                if ALGORITHM not in name.parts:
                    target = self.folder / name
                    download(self.system, path, target)
                    self._states[target] = file_state(target)

    def push(self) -> None:
        """Copy what was made of it since."""
        with reaching(self.uri):
            for folder, _, files in os.walk(self.folder):
                for path in (Path(folder) / name for name in files if not name.startswith(".")):
                    if self._states.get(path) == (state := file_state(path)):
                        continue
                    upload(path, self.system, f"{self.path}/{path.relative_to(self.folder)}")
                    self._states[path] = state
