"""Whole episodes of actions as the plain arrays that models read."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.errors import UserError

__all__ = ["action_space", "flat_actions", "whole_range"]

Array = np.ndarray[Any, Any]


def action_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the action space if data of it can be kept.

    Raises:
        UserError: it is neither Discrete nor MultiDiscrete or a Box with one axis.
    """
    if isinstance(space, gym.spaces.Discrete):
        return space
    if isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1:
        return space
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.dtype(space.dtype).kind == "f":
        return space
    raise UserError(
        f"action space {space} is not supported; allowed are Discrete, MultiDiscrete and a Box of one axis: wrap the "
        "environment and make the data set again"
    )


def whole_range(space: gym.Space[Any]) -> tuple[Array, Array] | None:
    """Return the first and last action, per part of a MultiDiscrete space; None for continuous actions."""
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray(int(space.start)), np.asarray(int(space.start) + int(space.n) - 1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        first, sizes = np.asarray(space.start, np.int64), np.asarray(space.nvec, np.int64)
        return first, first + sizes - 1
    return None


def flat_actions(space: gym.Space[Any], values: Any) -> Array:
    """Return the actions of an episode.

    Returns:
        `(T, A)` float32 for a Box, `(T, A)` int64 for MultiDiscrete and `(T,)` int64 for Discrete, both in the
        environment's numbering.

    Raises:
        UserError: they do not fit the space.
    """
    array = np.asarray(values)
    if array.ndim == 0 or array.dtype.kind not in "fiub":
        raise UserError(f"actions are {array.dtype} and not numbers for each step; remove or repair it")
    if isinstance(space, gym.spaces.Discrete) and array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(len(array))
    shape = space.shape or ()
    if array.shape[1:] != shape:
        raise UserError(f"actions have shape {array.shape[1:]}, the space says {shape}; remove or repair it")
    allowed = whole_range(space)
    if allowed is None:
        return array.astype(np.float32, copy=False)
    first, last = allowed
    if array.dtype.kind not in "iu" or (array < first).any() or (array > last).any():
        raise UserError(f"actions are not whole numbers from {first} to {last}; remove or repair it")
    return array.astype(np.int64, copy=False)
