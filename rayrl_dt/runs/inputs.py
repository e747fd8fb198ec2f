"""The bundles that a run depends on: copied into its folder, for the originals may move or go on training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.run_files import CONFIG, is_run

__all__ = ["check_folder", "keep_bundle", "replace_key"]


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UserError if a run cannot start in a folder, or be resumed there."""
    taken = folder.exists() and any(folder.iterdir())
    if taken and not is_run(folder):
        raise UserError(f"{folder} exists already and is no run (it has no {CONFIG}); choose another --out")
    if resume and not taken:
        raise UserError(f"{folder} has nothing to resume; start it without --resume")
    if taken and not resume:
        raise UserError(f"{folder} exists already; continue it with --resume or choose another --out")


def keep_bundle(source: str, folder: Path) -> None:
    """Copy the bundle of a run, checkpoint or bundle to a folder, unless it is there."""
    if not folder.exists():
        Bundle.open(source).copy_to(folder)


def replace_key(values: Mapping[str, Any], section: str, key: str, value: Any) -> dict[str, Any]:
    """Return a config file's content with one key of a section set."""
    return {**values, section: {**values[section], key: value}}
