"""The files of a trajectory store: flat arrays, and a header that says what they are and what they must add up to."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from rayrl_dt.data.info import DatasetInfo
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.types import Normalizer

__all__ = ["ARRAYS", "FORMAT", "HEADER", "checksum", "read", "write_header"]

Array = np.ndarray[Any, Any]

ARRAYS = (
    "observations",
    "actions",
    "rewards",
    "returns_to_go",
    "starts",
    "lengths",
    "terminated",
    "final_observations",
)
FORMAT = 1
HEADER = "store.json"


def read(folder: Path) -> tuple[dict[str, Array], DatasetInfo, Normalizer, bool]:
    """Map the arrays, and return them with what the header says; the last is whether rewards are delayed.

    Raises:
        UserError: the folder is no store, not a whole one, or not what was written.
    """
    try:
        header = json.loads((folder / HEADER).read_text())
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        info = DatasetInfo.from_json(header["info"])
        normalizer = Normalizer(
            np.array(header["mean"], np.float32),
            np.array(header["std"], np.float32),
            tuple(header.get("raised", ())),
        )
        _check(arrays, info, normalizer)
        # Stores of earlier versions have none.
        for name, written in header.get("checksums", {}).items():
            if checksum(arrays[name]) != written:
                raise ValueError(f"{name} are not what was written")
        return arrays, info, normalizer, bool(header["delayed_reward"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, TokenError) as error:
        if isinstance(error, FileNotFoundError) and not (folder / HEADER).exists():
            what = f"holds no {HEADER}, so it is no trajectory store"
            if not folder.is_dir():
                what = "does not exist" if folder.is_absolute() else f"does not exist in {Path.cwd()}"
            raise UserError(f"{folder} {what}; name the folder that a store was saved in") from error
        raise UserError(
            f"{folder} is not a whole trajectory store ({one_line(error)}); restore it, or save it again from the data"
        ) from error


def checksum(values: Array, before: int = 0) -> int:
    """Return the CRC32 of an array's bytes, or go on from that of what came before them."""
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, before)


def _check(arrays: dict[str, Array], info: DatasetInfo, normalizer: Normalizer) -> None:
    """Raise ValueError where arrays do not fit one another or the spaces."""
    steps, episodes = len(arrays["rewards"]), len(arrays["lengths"])
    observation, action = info.observation_space.shape or (), info.action_space.shape or ()
    shapes = {
        "observations": (steps, *observation),
        "actions": (steps, *action),
        "returns_to_go": (steps,),
        "rewards": (steps,),
        "starts": (episodes,),
        "lengths": (episodes,),
        "terminated": (episodes,),
        "final_observations": (episodes, *observation),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} are of shape {arrays[name].shape}, not {shape}")
    if normalizer.mean.shape != observation or normalizer.std.shape != observation:
        raise ValueError(f"the statistics are of shape {normalizer.mean.shape}, not {observation}")
    starts, lengths = arrays["starts"], arrays["lengths"]
    if episodes == 0 or (lengths < 1).any() or (starts < 0).any() or (starts + lengths > steps).any():
        raise ValueError("the episodes lie outside the steps")


def write_header(
    folder: Path,
    info: DatasetInfo,
    normalizer: Normalizer,
    checksums: dict[str, int],
    *,
    delayed_reward: bool = False,
) -> None:
    """Write the JSON file that, coming last, make a folder of arrays a whole store."""
    header = {
        "format": FORMAT,
        "info": info.to_json(),
        "delayed_reward": delayed_reward,
        "mean": normalizer.mean.tolist(),
        "std": normalizer.std.tolist(),
        "raised": list(normalizer.raised),
        "checksums": checksums,
    }
    (folder / HEADER).write_text(json.dumps(header, allow_nan=False))
