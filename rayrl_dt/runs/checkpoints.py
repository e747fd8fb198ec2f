"""The checkpoints of a run folder: written whole or not at all, found again, thinned out.

`checkpoints/N/` is RLlib's checkpoint of gradient step N with its policy bundle, `policy/` the newest bundle.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.data.staging import publish, stage
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.interop.bundle import BUNDLE
from rayrl_dt.interop.critics import carry_critic
from rayrl_dt.interop.header import HEADER
from rayrl_dt.interop.run_files import CHECKPOINTS, CRITIC_COPY

__all__ = ["checkpoints", "latest_checkpoint", "prune_checkpoints", "steps_of", "write_checkpoint", "writing"]

_KEEP = 2
_NAME = re.compile(r"\d{9,}")


def checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run folder, oldest first.

    A checkpoint is renamed into place only when whole, so every folder that is named by a number is one.
    """
    root = folder / CHECKPOINTS
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if steps_of(path.name) is not None and path.is_dir())


def steps_of(name: str) -> int | None:
    """Return the gradient steps that a checkpoint's folder is named by; None if it is no checkpoint's name."""
    return int(name) if _NAME.fullmatch(name) else None


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run folder, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


_GO_ON = "the run's checkpoints before it are whole: make room, then go on with --resume"


@contextmanager
def writing(path: Path, *, remedy: str = _GO_ON) -> Iterator[None]:
    """Turn a disk that is full, or refuse, into an error that says what to do.

    Raises:
        UserError: `path` could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # The message of one that an actor raised is the traceback of its process.
        cause = getattr(error, "cause", error)
        why = getattr(cause, "strerror", None) or one_line(cause)
        raise UserError(f"{path} could not be written ({why}); {remedy}") from error


def write_checkpoint(folder: Path, algorithm: SequenceAlgorithm) -> Path:
    """Write a checkpoint of the algorithm as it is, and the newest bundle.

    Args:
        folder: the run folder.
        algorithm: to be saved.

    Raises:
        UserError: the disk is full or refuses, or holds something else by that name; the checkpoints before this one
            are whole.
    """
    target = folder / CHECKPOINTS / f"{algorithm.gradient_steps:09d}"
    newest = folder / BUNDLE
    aside, newest_aside = stage(target), stage(newest)
    try:
        with writing(target):
            algorithm.save_to_path(str(aside.resolve()))
            # One that was trained since, with the policy before this one, is still a critic of the same data; else the
            # one that the objective asks. To act with; neither replaces a critic that trains with the policy.
            for source in (newest, folder / CRITIC_COPY):
                carry_critic(source, aside / BUNDLE)
            shutil.copytree(aside / BUNDLE, newest_aside, dirs_exist_ok=True)
            publish(aside, target, header=f"{BUNDLE}/{HEADER}")
            publish(newest_aside, newest, header=HEADER)
    finally:
        # A full disk gets back what could not be finished.
        for rest in (aside, newest_aside):
            shutil.rmtree(rest, ignore_errors=True)
    return target


def prune_checkpoints(folder: Path, *, besides: Collection[str]) -> None:
    """Remove all but the last two checkpoints.

    Args:
        folder: the run folder.
        besides: others to keep, by their path in the folder.
    """
    for old in checkpoints(folder)[:-_KEEP]:
        if str(old.relative_to(folder)) not in besides:
            shutil.rmtree(old, ignore_errors=True)
