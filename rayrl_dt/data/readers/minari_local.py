"""The folder of local Minari data sets: what is in it, and how to get more into it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import minari
from minari.dataset.minari_dataset import parse_dataset_id

from rayrl_dt.errors import UserError, suggest

__all__ = [
    "HEADER",
    "check_id",
    "data_folder",
    "datasets_root",
    "exists",
    "first_line",
    "list_local",
    "mark_namespaces",
]

_LOG = logging.getLogger(__name__)
HEADER = "data/metadata.json"
"""The file, in a data set's folder, by which it is known to be one."""


def datasets_root() -> Path:
    """Return the folder of local data sets: `MINARI_DATASETS_PATH`, else `~/.minari/datasets`."""
    root = os.environ.get("MINARI_DATASETS_PATH")
    return Path(root) if root else Path.home() / ".minari" / "datasets"


def exists(dataset_id: str) -> bool:
    """Return whether the data set is there locally."""
    return (datasets_root() / dataset_id / HEADER).is_file()


def list_local() -> list[dict[str, Any]]:
    """Return the local data sets, sorted by id: `id, episodes, steps, env, author, size_mb`."""
    root = datasets_root()
    found = []
    for folder, names, _ in os.walk(root):
        path = Path(folder)
        if "data" in names:
            try:
                found.append(_summary(path, path.relative_to(root).as_posix()))
            except Exception as error:  # not a data set, or being written, or with metadata of any other kind
                _LOG.debug("%s is no Minari data set: %r", path, error)
            names.clear()
        names[:] = [name for name in names if not name.startswith(".")]
    return sorted(found, key=lambda row: str(row["id"]))


def data_folder(dataset_id: str, *, download: bool = False) -> Path:
    """Return the folder that holds the data set's files.

    Raises:
        UserError: it is not there locally, and could not be or was not to be downloaded.
    """
    folder = datasets_root() / dataset_id / "data"
    if folder.is_dir():
        return folder
    failure = ""
    if download:
        try:
            check_id(dataset_id)
            _download(dataset_id)
        except UserError:  # malformed: nothing can be there
            pass
        except Exception as error:  # whatever the remote's client raises
            failure = f", and downloading it failed ({type(error).__name__}: {first_line(error)})"
        else:
            return folder
    known = [row["id"] for row in list_local()]
    raise UserError(
        f"no Minari data set {dataset_id!r} in {datasets_root()}{failure}."
        f"{suggest(dataset_id, known) if known else ' That folder holds no data set.'} "
        "Make one with `rayrl-dt data make`, or download it on a connected machine and copy it there"
    )


def mark_namespaces(dataset_id: str) -> None:
    """Give each namespace of the id the file by which Minari knows it."""
    for parent in list(Path(dataset_id).parents)[:-1]:
        with (
            contextlib.suppress(FileExistsError),
            (datasets_root() / parent / "namespace_metadata.json").open("x") as f,
        ):
            f.write("{}")


def check_id(dataset_id: str) -> None:
    """Raise a UserError if Minari would not take the id."""
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError: the version is missing
        raise UserError(
            f"{dataset_id!r} is not a Minari data set id; write namespace/name-v0 in letters, digits, - and _"
        ) from error


def _download(dataset_id: str) -> None:
    remote = os.environ.get("MINARI_REMOTE", "hf://")
    if remote.startswith("hf://"):
        # The client retries for half a minute before it believes that there is no network.
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
    _LOG.info("Downloading %s to %s", dataset_id, datasets_root())
    with contextlib.redirect_stdout(None):
        minari.download_dataset(dataset_id)


def _summary(folder: Path, dataset_id: str) -> dict[str, Any]:
    raw = json.loads((folder / "data" / "metadata.json").read_text())
    spec = json.loads(raw["env_spec"]) if raw.get("env_spec") else {}
    size = sum(path.stat().st_size for path in (folder / "data").rglob("*") if path.is_file())
    return {
        "id": dataset_id,
        "episodes": int(raw["total_episodes"]),
        "steps": int(raw["total_steps"]),
        "env": spec.get("id"),
        "author": ", ".join(map(str, raw.get("author") or ())),
        "size_mb": round(size / 1e6, 1),
    }


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or ["no details"])[0]
