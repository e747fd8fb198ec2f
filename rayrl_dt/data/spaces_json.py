"""Gymnasium spaces as JSON: boxes and discrete spaces, which is all that the policies here act on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.errors import UserError

__all__ = ["from_json", "to_json"]


def to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Return a JSON-ready dict.

    Raises:
        UserError: the space is neither a Box nor a Discrete.
    """
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.Box):
        low, high = (_compact(bound) for bound in (space.low, space.high))
        return {
            "type": "Box",
            "low": low,
            "high": high,
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    raise UserError(
        f"space {space} is not supported; allowed are Box and Discrete: flatten it with a Gymnasium wrapper"
    )


def from_json(values: dict[str, Any]) -> gym.Space[Any]:
    """Inverse of `to_json`."""
    if values["type"] == "Discrete":
        return gym.spaces.Discrete(values["n"], start=values["start"])
    shape, dtype = tuple(values["shape"]), np.dtype(values["dtype"]).type
    low, high = (np.broadcast_to(np.array(values[key], dtype), shape) for key in ("low", "high"))
    return gym.spaces.Box(low.copy(), high.copy(), shape, dtype)


def _compact(bound: np.ndarray[Any, Any]) -> Any:
    """Return a bound as one number if it is the same everywhere (images), else as nested lists."""
    same = bound.size > 0 and np.all(bound == bound.flat[0])
    return bound.flat[0].item() if same else bound.tolist()
