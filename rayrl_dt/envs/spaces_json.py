"""Gymnasium spaces as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError

__all__ = ["MOST_NUMBERS", "from_json", "optional_from_json", "optional_to_json", "to_json"]

Array = np.ndarray[Any, Any]
MOST_NUMBERS = 2**25
"""That an array of a space may have: a color picture of 3840 x 2160 pixels has 25 million."""


def to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Return a dict that is JSON to the letter: infinite bounds are the texts "inf" and "-inf".

    Parts that no policy reads (texts, graphs, sequences) come back as texts.

    Raises:
        UserError: the space itself is such a part.
    """
    written = _write(space)
    if written["type"] == "Text":
        raise UserError(
            f"space {space} is not supported; allowed are Box, Discrete, MultiDiscrete, MultiBinary, and Dict and "
            "Tuple of these: wrap the environment"
        )
    return written


def from_json(values: dict[str, Any]) -> gym.Space[Any]:
    """Inverse of `to_json`; also reads infinite bounds as Python's own JSON has them.

    Raises:
        UserError: an array of the space is too large, or of no numbers of up to 64 bits.
    """
    return _READERS[values["type"]](values)


def optional_to_json(space: gym.Space[Any] | None) -> dict[str, Any] | None:
    """Return a space as `to_json` does; None for None."""
    return None if space is None else to_json(space)


def optional_from_json(values: dict[str, Any] | None) -> gym.Space[Any] | None:
    """Inverse of `optional_to_json`."""
    return None if values is None else from_json(values)


def _write(space: gym.Space[Any]) -> dict[str, Any]:
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, Packed):
        return {"type": "Packed", "numbers": space.numbers, "picture": list(space.picture)}
    if isinstance(space, gym.spaces.Box):
        low, high = (_finite(_compact(bound)) for bound in (space.low, space.high))
        return {
            "type": "Box",
            "low": low,
            "high": high,
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, gym.spaces.Dict):
        # A list of pairs: the order is that of the vector, and JSON objects have none.
        return {"type": "Dict", "parts": [[key, _write(part)] for key, part in space.spaces.items()]}
    if isinstance(space, gym.spaces.Tuple):
        return {"type": "Tuple", "parts": [_write(part) for part in space.spaces]}
    return {"type": "Text"}


def _sized(*shape: int) -> tuple[int, ...]:
    """Return a shape, whose bounds are to be allocated."""
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) > MOST_NUMBERS:
        raise UserError(
            f"a space has shape {shape}; its sides must be whole numbers, and an array of it may have "
            f"{MOST_NUMBERS:,} numbers: wrap the environment so that it gives smaller ones"
        )
    return shape


def _packed(values: dict[str, Any]) -> gym.Space[Any]:
    picture = _sized(*values["picture"])
    _sized(values["numbers"])
    return Packed(values["numbers"], picture)


def _box(values: dict[str, Any]) -> gym.Space[Any]:
    shape, kind = _sized(*values["shape"]), np.dtype(values["dtype"])
    if kind.kind not in "fiub" or kind.itemsize > 8:
        raise UserError(
            f"a space has dtype {kind}; allowed are float, int, uint of up to 64 bits, and bool: wrap the environment"
        )
    dtype = kind.type
    low, high = (np.broadcast_to(np.array(values[key]).astype(dtype), shape) for key in ("low", "high"))
    return gym.spaces.Box(low.copy(), high.copy(), shape, dtype)


_READERS: dict[str, Callable[[dict[str, Any]], gym.Space[Any]]] = {
    "Discrete": lambda values: gym.spaces.Discrete(values["n"], start=values["start"]),
    "MultiDiscrete": lambda values: gym.spaces.MultiDiscrete(values["nvec"], start=values["start"]),
    "MultiBinary": lambda values: gym.spaces.MultiBinary(values["n"]),
    "Box": _box,
    "Packed": _packed,
    "Dict": lambda values: gym.spaces.Dict([(key, from_json(part)) for key, part in values["parts"]]),
    "Tuple": lambda values: gym.spaces.Tuple([from_json(part) for part in values["parts"]]),
    "Text": lambda values: gym.spaces.Text(1),
}


def _compact(bound: Array) -> Any:
    """Return a bound as one number if it is the same everywhere (images), else as nested lists."""
    same = bound.size > 0 and np.all(bound == bound.flat[0])
    return bound.flat[0].item() if same else bound.tolist()


def _finite(bound: Any) -> Any:
    if isinstance(bound, list):
        return [_finite(each) for each in bound]
    return bound if isinstance(bound, int) or math.isfinite(bound) else str(bound)
