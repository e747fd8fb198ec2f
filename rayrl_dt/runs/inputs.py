"""What a run starts with: a folder of its own, and the bundles that it depends on.

Bundles are copied into the folder, for the originals may move or go on training.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rayrl_dt.data.staging import is_staged
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import BUNDLE, Bundle
from rayrl_dt.interop.run_files import (
    CHECKPOINTS,
    CONFIG,
    CRITIC_COPY,
    LOCK,
    METRICS,
    RECORD,
    START_COPY,
    is_run,
)
from rayrl_dt.runs.checkpoints import latest_checkpoint

__all__ = ["check_folder", "keep_bundle", "locked", "own_folder", "replace_key"]

_LOG = logging.getLogger(__name__)
_PATIENCE_S = 0.3
"""Whoever only looks whether a folder is locked (`rayrl-dt watch`) holds the lock for a moment."""
_WRITTEN = (
    CONFIG,
    RECORD,
    METRICS,
    LOCK,
    START_COPY,
    CRITIC_COPY,
    CHECKPOINTS,
    BUNDLE,
    "evaluations",
    ".copy",
)
_OF_RUNS = re.compile(rf"({'|'.join(map(re.escape, _WRITTEN))}|events\..*|\w+\.tmp)$")
"""What a run that was lost before its first checkpoint may have left."""


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UserError if a run cannot start in a folder, or be resumed there.

    A run may start where another one was lost before its first checkpoint.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    taken = folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())
    if taken and not is_run(folder):
        raise UserError(
            f"{folder} exists already and is no run (it has no {CONFIG}, or no {RECORD}); choose another --out"
        )
    if resume and not taken:
        raise UserError(f"{folder} has nothing to resume; start it without --resume")
    if not resume and latest_checkpoint(folder) is not None:
        raise UserError(f"{folder} exists already; continue it with --resume or choose another --out")
    names = [path.name for path in folder.iterdir()] if taken else []
    foreign = [name for name in names if not (_OF_RUNS.match(name) or is_staged(name))]
    if foreign and not resume:
        raise UserError(f"{folder} holds {min(foreign)}, which no run has written; choose another --out")


@contextmanager
def own_folder(folder: Path, *, resume: bool) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if need be; what a killed or lost run left there is removed.

    A run that is refused before it has said what it is leaves no folder behind.

    Raises:
        UserError: as `check_folder`, or a run is under way there.
    """
    check_folder(folder, resume=resume)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, what="run"):
            check_folder(folder, resume=resume)  # another run may have ended since
            _clear(folder, resume=resume)
            yield
    except UserError:
        if made and not (folder / RECORD).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def locked(folder: Path, *, what: str) -> Iterator[None]:
    """Keep others of the same kind out of a folder; the lock ends with the process, however that ends.

    Raises:
        UserError: one is under way there.
    """
    lock = FileLock(folder / LOCK, timeout=_PATIENCE_S)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"a {what} is under way in {folder}; wait for its end, or choose another --out"
        ) from None
    except (NotImplementedError, OSError) as error:
        _LOG.warning("%s cannot be locked (%s): start no second %s there.", folder, error, what)
    try:
        yield
    finally:
        lock.release()


def _clear(folder: Path, *, resume: bool) -> None:
    """Remove half-written checkpoints, and from a new run's folder what a lost one would mix into it."""
    hidden = (*folder.glob(".*"), *(folder / CHECKPOINTS).glob(".*"))
    rests = [path for path in hidden if is_staged(path.name)]
    if not resume:
        rests += [folder / START_COPY, folder / CRITIC_COPY, *folder.glob("events.*")]
    for rest in rests:
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


def keep_bundle(source: str, folder: Path) -> None:
    """Copy the bundle of a run, checkpoint or bundle to a folder, unless it is there."""
    if not folder.exists():
        Bundle.open(source).copy_to(folder)


def replace_key(values: Mapping[str, Any], section: str, key: str, value: Any) -> dict[str, Any]:
    """Return a config file's content with one key of a section set."""
    return {**values, section: {**values[section], key: value}}
