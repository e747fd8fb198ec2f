"""Actions of an environment as the plain arrays that models read, and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.errors import UserError
from rayrl_dt.types import as_array

__all__ = ["ActionLayout", "same_choices", "whole_range"]

Array = np.ndarray[Any, Any]
Space = gym.Space[Any]

# More choices than this in one number are no choices but a scale.
_MOST_CHOICES = 1024


@dataclass(frozen=True)
class ActionLayout:
    """How actions become arrays, and arrays actions.

    A Box of floats of any shape becomes one of a single axis. What is several choices at once becomes MultiDiscrete
    of a single axis, in int64: MultiBinary, MultiDiscrete of any shape and type, and a bounded Box of whole numbers.

    Attributes:
        space: of one action as the environment takes it.
    """

    space: Space

    @cached_property
    def flat(self) -> Space:
        """The space of the arrays: Discrete, MultiDiscrete or a Box of floats with one axis.

        Raises:
            UserError: the space is none of those that can be laid out so.
        """
        space, shape = self.space, self.space.shape or ()
        if isinstance(space, gym.spaces.Discrete):
            return space
        if isinstance(space, gym.spaces.Box) and np.dtype(space.dtype).kind == "f":
            if len(shape) == 1:
                return space
            # Any: the stubs of gymnasium know only some types of floats.
            dtype: Any = np.dtype(space.dtype).type
            return gym.spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=dtype)
        if isinstance(space, gym.spaces.MultiDiscrete):
            if len(shape) == 1 and space.dtype == np.int64:
                return space
            return gym.spaces.MultiDiscrete(space.nvec.reshape(-1), start=space.start.reshape(-1))
        if isinstance(space, gym.spaces.MultiBinary):
            return gym.spaces.MultiDiscrete(np.full(int(np.prod(shape)), 2))
        if isinstance(space, gym.spaces.Box) and space.is_bounded():
            low, high = space.low.reshape(-1).astype(np.int64), space.high.reshape(-1).astype(np.int64)
            if (high - low < _MOST_CHOICES).all():
                return gym.spaces.MultiDiscrete(high - low + 1, start=low)
        raise UserError(
            f"action space {space} is not supported; allowed are Discrete, MultiDiscrete, MultiBinary, a Box of "
            f"floats, and a Box of whole numbers with at most {_MOST_CHOICES} values each: wrap the environment and "
            "make the data set again"
        )

    @property
    def plain(self) -> bool:
        """Whether actions stay as they are."""
        return self.flat is self.space

    def episode(self, values: Any) -> Array:
        """Return the actions of an episode.

        Args:
            values: `(T, *action)` as the environment took them.

        Returns:
            `(T, A)` float32 for a Box, `(T, A)` int64 for MultiDiscrete and `(T,)` int64 for Discrete, both in the
            environment's numbering.

        Raises:
            UserError: they do not fit the space.
        """
        array = as_array(values)
        if array.ndim == 0 or array.dtype.kind not in "fiub":
            raise UserError(f"actions are {array.dtype} and not numbers for each step; remove or repair it")
        shape = self.space.shape or ()
        if not shape and array.shape[1:] == (1,):
            array = array.reshape(len(array))
        if array.shape[1:] != shape:
            one_hot = isinstance(self.space, gym.spaces.Discrete) and array.shape[1:] == (self.space.n,)
            remedy = "give the index of each one-hot vector, its argmax" if one_hot else "remove or repair it"
            raise UserError(f"actions have shape {array.shape[1:]}, the space says {shape}; {remedy}")
        array = array.reshape(len(array), *(self.flat.shape or ()))
        allowed = whole_range(self.flat)
        if allowed is None:
            return array.astype(np.float32, copy=False)
        first, last = allowed
        # Flags and the numbers of tables are whole, too.
        whole = array.dtype.kind in "bf" and np.isfinite(array).all() and (array == np.round(array)).all()
        array = array.astype(np.int64) if whole else array
        if array.dtype.kind not in "iu" or (array < first).any() or (array > last).any():
            raise UserError(f"actions are not whole numbers from {first} to {last}; remove or repair it")
        return array.astype(np.int64, copy=False)

    def restore(self, action: Any) -> Any:
        """Return one action of the flat space as the environment takes it."""
        if self.plain:
            return action
        return np.asarray(action).reshape(self.space.shape or ()).astype(self.space.dtype, copy=False)


def whole_range(space: Space) -> tuple[Array, Array] | None:
    """Return the first and last action, per part of a MultiDiscrete space; None for continuous actions."""
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray(int(space.start)), np.asarray(int(space.start) + int(space.n) - 1)
    if isinstance(space, gym.spaces.MultiDiscrete):
        first, sizes = np.asarray(space.start, np.int64), np.asarray(space.nvec, np.int64)
        return first, first + sizes - 1
    return None


def same_choices(one: Space, other: Space) -> bool:
    """Return whether two spaces are the same, whatever type of number their choices come in."""
    first, second = whole_range(one), whole_range(other)
    return bool(one == other) if first is None or second is None else np.array_equal(first, second)
