"""The config files that come with the package: beside it in a checkout, among the data files of a wheel."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

__all__ = ["FOLDER", "config_path", "shipped_configs"]

FOLDER = "tune_configs"
"""What the folder is called, in a checkout and in names such as `tune_configs/dt_pendulum.yaml`."""


@lru_cache(maxsize=1)
def shipped_configs() -> dict[str, Path]:
    """Return the files by name, without `.yaml`."""
    checkout = Path(__file__).parents[2] / FOLDER
    found = list(checkout.glob("*.yaml")) or _installed()
    return {path.stem: path for path in sorted(found)}


def config_path(path: str | Path) -> Path:
    """Return the file that a user means: the one at `path`, or where there is none the shipped one of that name.

    Args:
        path: a file, or `dt_pendulum`, `dt_pendulum.yaml`, `tune_configs/dt_pendulum.yaml`.
    """
    file = Path(path)
    if file.exists() or file.parent not in (Path(), Path(FOLDER)) or file.suffix not in ("", ".yaml"):
        return file
    return shipped_configs().get(file.stem, file)


def _installed() -> list[Path]:
    try:
        recorded = files("rayrl_dt") or []
    except PackageNotFoundError:
        return []
    shipped = [file for file in recorded if file.suffix == ".yaml" and file.parent.name == FOLDER]
    found = [Path(str(file.locate())) for file in shipped]
    # `pip install --target` puts data files beside the package, and not where it has written down.
    beside = Path(__file__).parents[2] / "share" / "rayrl_dt" / FOLDER
    return [path for path in found if path.exists()] or list(beside.glob("*.yaml"))
