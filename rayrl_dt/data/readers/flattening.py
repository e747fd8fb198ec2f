"""Whole episodes of any Gymnasium space as the plain arrays that models read.

The layout is that of `gymnasium.spaces.utils.flatten`, hence of the `FlattenObservation` wrapper, but for all
steps of an episode at once.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import flatten_space

from rayrl_dt.errors import UserError

__all__ = ["action_space", "flat_actions", "flat_space", "flatten"]

Array = np.ndarray[Any, Any]


def flat_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the Box that flattened observations lie in; a Box stays as it is.

    Raises:
        UserError: the space has parts without a fixed size.
    """
    if isinstance(space, gym.spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) < 2:
            return gym.spaces.Box(
                space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
            )
        return space
    _check(space)
    box = flatten_space(space)
    assert isinstance(box, gym.spaces.Box)
    return gym.spaces.Box(box.low.astype(np.float32), box.high.astype(np.float32), dtype=np.float32)


def flatten(space: gym.Space[Any], values: Any) -> Array:
    """Flatten the observations of an episode.

    Args:
        space: of one observation.
        values: `(T, *obs)`, or for Dict and Tuple spaces a dict or tuple of such.

    Returns:
        `(T, *obs)` for a Box (uint8 for images, else float32), `(T, D)` float32 for other spaces.

    Raises:
        UserError: the values do not fit the space.
    """
    if isinstance(space, gym.spaces.Box):
        array = _array("observations", values, space.shape)
        return array if array.dtype == np.uint8 and array.ndim >= 3 else array.astype(np.float32, copy=False)
    try:
        return _columns(space, values)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"observations do not fit {space} ({error!r}); remove or repair it") from error


def action_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the action space if the policies here can act in it.

    Raises:
        UserError: it is neither Discrete nor a Box with one axis.
    """
    if isinstance(space, gym.spaces.Discrete) or (
        isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.dtype(space.dtype).kind == "f"
    ):
        return space
    raise UserError(
        f"action space {space} is not supported; allowed are Discrete and a Box of one axis: wrap the "
        "environment and make the data set again"
    )


def flat_actions(space: gym.Space[Any], values: Any) -> Array:
    """Return the actions of an episode as `(T, A)` float32, or `(T,)` int64 in the environment's numbering.

    Raises:
        UserError: they do not fit the space.
    """
    if not isinstance(space, gym.spaces.Discrete):
        return _array("actions", values, space.shape or ()).astype(np.float32, copy=False)
    array = _array("actions", values)
    array = array.reshape(len(array)) if array.ndim == 2 and array.shape[1] == 1 else array
    low, high = int(space.start), int(space.start) + int(space.n) - 1
    if array.ndim != 1 or array.dtype.kind not in "iu" or (len(array) and not _within(array, low, high)):
        raise UserError(f"actions are not whole numbers from {low} to {high}; remove or repair it")
    return array.astype(np.int64, copy=False)


def _columns(space: gym.Space[Any], values: Any) -> Array:
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([_columns(part, values[key]) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, gym.spaces.Tuple):
        parts = zip(space.spaces, values, strict=True)
        return np.concatenate([_columns(part, value) for part, value in parts], axis=1)
    if isinstance(space, gym.spaces.Discrete):
        return _one_hot(_array("observations", values).reshape(len(values)) - int(space.start), int(space.n))
    array = _array("observations", values, space.shape or ())
    array = array.reshape(len(array), -1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        sizes = np.ravel(space.nvec).tolist()
        digits = array - np.ravel(space.start)
        return np.concatenate([_one_hot(digits[:, i], size) for i, size in enumerate(sizes)], axis=1)
    return array.astype(np.float32, copy=False)


def _one_hot(digits: Array, size: int) -> Array:
    if len(digits) and not _within(digits, 0, size - 1):
        raise UserError(f"a discrete observation lies outside its {size} values; remove or repair it")
    encoded = np.zeros((len(digits), size), np.float32)
    encoded[np.arange(len(digits)), digits.astype(np.int64)] = 1
    return encoded


def _within(values: Array, low: int, high: int) -> bool:
    return bool(values.min() >= low and values.max() <= high)


def _array(name: str, values: Any, shape: tuple[int, ...] | None = None) -> Array:
    """Return the values of all steps, of the given shape each if one is given."""
    array = np.asarray(values)
    if array.ndim == 0 or array.dtype.kind not in "fiub":
        raise UserError(f"{name} are {array.dtype} and not numbers for each step; remove or repair it")
    if shape is not None and array.shape[1:] != shape:
        raise UserError(f"{name} have shape {array.shape[1:]}, the space says {shape}; remove or repair it")
    return array


def _check(space: gym.Space[Any]) -> None:
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else space.spaces
        for part in parts:
            _check(part)
    elif not isinstance(
        space, gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
    ):
        raise UserError(
            f"observation space {space} has no fixed size; flatten it with a Gymnasium wrapper first"
        )
