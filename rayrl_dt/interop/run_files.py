"""What a policy's run says of it, where the run folder is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CONFIG", "RECORD", "find_run", "is_run", "run_settings"]

CONFIG = "config.yaml"
"""What was chosen; there from a run's first moment on."""
RECORD = "run.json"
"""How it was begun, and on what; there once the algorithm is built."""


def is_run(folder: Path) -> bool:
    """Return whether a run was begun in a folder, even if it was lost before its first checkpoint."""
    return (folder / CONFIG).exists()


def find_run(path: str | os.PathLike[str]) -> Path | None:
    """Return the run folder that `path` is, or lies in (as RUN/checkpoints/N/policy does); None if there is none."""
    given = Path(path)
    for place in (given, given.resolve()):  # first as the user wrote it
        for folder in (place, *place.parents[:3]):
            if (folder / CONFIG).is_file() and (folder / RECORD).is_file():
                return folder
    return None


def run_settings(path: str | os.PathLike[str], section: str) -> dict[str, Any]:
    """Return a section of the config of the run that `path` is, or lies in; empty if there is neither."""
    folder = find_run(path)
    if folder is None:
        return {}
    values = yaml.safe_load((folder / CONFIG).read_text())
    chosen = values.get(section) if isinstance(values, dict) else None
    return chosen if isinstance(chosen, dict) else {}
