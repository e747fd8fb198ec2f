"""Observations of any Gymnasium space as the plain arrays that models read.

One object, made from the space that the data was recorded in, does it for the data, for environments and for a policy
that acts on its own: `Flattening`. The layout is that of `gymnasium.spaces.utils.flatten`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import flatten_space

from rayrl_dt.envs.actions import same_choices
from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError
from rayrl_dt.types import as_array

__all__ = ["Flattening", "are_pixels", "as_bytes", "has_numbers", "parts_of"]

Array = np.ndarray[Any, Any]
Space = gym.Space[Any]

# A smaller array of bytes, like a grid of 7 x 7 cells, is a table and no picture.
_PICTURE_SIDE = 32
_FLOATS = (np.float16, np.float32, np.float64)
_PARTS = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


@dataclass(frozen=True)
class Flattening:
    """How observations become arrays.

    Pictures (bytes with two axes of 32 or more) stay as they are, all else becomes one vector of float32: Dict and
    Tuple part by part, discrete values one-hot. Parts that are no numbers, such as text, are left out. Where one of
    several parts is a picture, its bytes stand beside those of the vector (`rayrl_dt.envs.packed.Packed`).

    Attributes:
        space: of one observation as the environment gives it.
        kept: observations stay as they are, whatever the space.
        packs: False for pictures among the numbers of the vector, as policies of earlier versions read them.
    """

    space: Space
    kept: bool = False
    packs: bool = True

    @cached_property
    def flat(self) -> Space:
        """The Box that the arrays lie in.

        Raises:
            UserError: the space has no part of a fixed size.
        """
        space = self.space
        if self.kept or _is_picture(space):
            return space
        parts = [part for _, part in parts_of(space) if isinstance(part, _PARTS)]
        boxes = [cast(gym.spaces.Box, flatten_space(part)) for part in parts if not self._packs(part)]
        if len(boxes) < len(parts):
            picture, *_ = (part.shape or () for part in parts if self._packs(part))
            return Packed(sum(int(np.prod(box.shape)) for box in boxes), picture)
        if not sum(int(np.prod(box.shape)) for box in boxes):
            raise UserError(
                f"observation space {space} has no part of numbers of a fixed size; wrap the environment first"
            )
        if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.dtype in _FLOATS:
            return space
        low, high = (
            np.concatenate([getattr(box, bound) for box in boxes], dtype=np.float32, casting="unsafe")
            for bound in ("low", "high")
        )
        return gym.spaces.Box(low, high, dtype=np.float32)

    @cached_property
    def _has_one_picture(self) -> bool:
        parts = [part for _, part in parts_of(self.space) if isinstance(part, _PARTS)]
        return self.packs and len(parts) > 1 and sum(map(_is_picture, parts)) == 1

    def _packs(self, part: Space) -> bool:
        """Return whether a part is a picture that stands beside the vector."""
        return self._has_one_picture and _is_picture(part)

    @property
    def plain(self) -> bool:
        """Whether observations stay as they are."""
        return self.flat is self.space

    @property
    def left_out(self) -> list[str]:
        """The parts that are no numbers, as "name (kind)"."""
        return [
            f"{name} ({type(part).__name__})"
            for name, part in parts_of(self.space)
            if not isinstance(part, _PARTS)
        ]

    @property
    def unrolled(self) -> list[str]:
        """The parts that are pictures to the eye and a row of numbers to the model, as "name (shape)"."""
        if self.kept or _is_picture(self.space):
            return []
        return [
            f"{name} {part.shape}".strip()
            for name, part in parts_of(self.space)
            if isinstance(part, gym.spaces.Box) and are_pixels(part.shape, np.uint8) and not self._packs(part)
        ]

    def feature(self, index: int) -> str:
        """Return what to call a number of the vector in messages."""
        first = 0
        for name, part in parts_of(self.space):
            among = isinstance(part, _PARTS) and not self._packs(part)
            size = int(np.prod(flatten_space(part).shape or ())) if among else 0
            if index < first + size:
                return f"{name}[{index - first}]" if name else f"feature {index}"
            first += size
        return f"feature {index}"

    def episode(self, values: Any) -> Array:
        """Flatten the observations of an episode, in the precision that they came in.

        Args:
            values: `(T, *obs)`, or for Dict and Tuple spaces a dict or tuple of such.

        Returns:
            `(T, *obs)`: uint8 for pictures and what is packed, else float32 or float64.

        Raises:
            UserError: the values do not fit the space.
        """
        if self.kept or _is_picture(self.space):
            return self._flattened(_numbers(values, self.space.shape or ()))
        try:
            leaves = list(_leaves(self.space, values))
            columns = [
                column for part, value in leaves if not self._packs(part) for column in _columns(part, value)
            ]
            numbers = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
            if not isinstance(self.flat, Packed):
                return numbers
            (picture,) = (as_bytes(as_array(value)) for part, value in leaves if self._packs(part))
            return self.flat.pack(numbers, picture)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"observations do not fit {self.space} ({error!r}); remove or repair it"
            ) from error

    def __call__(self, observation: Any) -> Array:
        """Return one observation, as an environment gave it or flattened already, as the model reads it.

        Raises:
            UserError: it does not fit the space.
        """
        space = self.space
        of_parts = isinstance(space, gym.spaces.Tuple)
        if of_parts and isinstance(observation, list) and as_array(observation).shape != self.flat.shape:
            observation = tuple(observation)
        if isinstance(observation, dict) or (of_parts and isinstance(observation, tuple)):
            return _single(self.episode(_batch_of_one(space, observation))[0])
        values = as_array(observation)
        if not isinstance(space, gym.spaces.Dict | gym.spaces.Tuple) and values.shape == (space.shape or ()):
            return _single(self.episode(values[None])[0])
        if values.shape != self.flat.shape:
            raise UserError(
                f"the observation has shape {values.shape}, and must have {self.flat.shape}; give it as its "
                "environment does"
            )
        return _single(self._flattened(_numbers(values)))

    def _flattened(self, values: Array) -> Array:
        """Return values that are laid out already, pictures and what is packed as bytes."""
        return as_bytes(values) if self.flat.dtype == np.uint8 else values

    def reads(self, space: Space) -> bool:
        """Return whether observations of a space have all that this one reads, by the same names."""
        return _has(space, self.space)


def has_numbers(space: Space) -> bool:
    """Return whether a part of the space is made of numbers of a fixed size."""
    return any(isinstance(part, _PARTS) for _, part in parts_of(space))


def are_pixels(shape: tuple[int, ...], dtype: Any) -> bool:
    """Return whether arrays of a shape and type are pictures: bytes with two axes of 32 or more."""
    return dtype == np.uint8 and len(shape) in (2, 3) and sorted(shape)[-2] >= _PICTURE_SIDE


def as_bytes(values: Array) -> Array:
    """Return pixels, whatever type of number they came in, as bytes; what is no number stays as it is.

    Raises:
        UserError: they are no whole numbers from 0 to 255.
    """
    if values.dtype == np.uint8 or values.dtype.kind not in "fiub":
        return values
    fitting = (values >= 0) & (values <= 255) & (values == np.floor(values))
    if not fitting.all():
        raise UserError(
            f"pictures hold {values[~fitting].flat[0]}; pixels and other bytes must be whole numbers from 0 to 255: "
            "convert them, or use an observation space of another type than uint8"
        )
    return values.astype(np.uint8)


def _is_picture(space: Space) -> bool:
    return isinstance(space, gym.spaces.Box) and are_pixels(space.shape, space.dtype)


def parts_of(space: Space, name: str = "") -> Iterator[tuple[str, Space]]:
    """Yield the innermost parts of a space, by their path."""
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            yield from parts_of(part, f"{name}.{key}" if name else str(key))
    elif isinstance(space, gym.spaces.Tuple):
        for number, part in enumerate(space.spaces):
            yield from parts_of(part, f"{name}[{number}]")
    else:
        yield name, space


def _leaves(space: Space, values: Any) -> Iterator[tuple[Space, Any]]:
    """Yield the innermost parts that are numbers, with the values of each."""
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            if has_numbers(part):
                yield from _leaves(part, values[key])
    elif isinstance(space, gym.spaces.Tuple):
        for part, value in zip(space.spaces, values, strict=True):
            if has_numbers(part):
                yield from _leaves(part, value)
    else:
        yield space, values


def _columns(space: Space, values: Any) -> Iterator[Array]:
    """Yield the `(T, D)` columns of a part."""
    if isinstance(space, gym.spaces.Discrete):
        yield _one_hot(_numbers(values).reshape(len(values)) - int(space.start), int(space.n))
    else:
        array = _numbers(values, space.shape or ())
        array = array.reshape(len(array), int(np.prod(array.shape[1:])))
        if isinstance(space, gym.spaces.MultiDiscrete):
            digits = array - np.ravel(space.start)
            for number, size in enumerate(np.ravel(space.nvec).tolist()):
                yield _one_hot(digits[:, number], size)
        else:
            yield array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _one_hot(digits: Array, size: int) -> Array:
    if len(digits) and not (digits.min() >= 0 and digits.max() <= size - 1):
        raise UserError(f"a discrete observation lies outside its {size} values; remove or repair it")
    encoded = np.zeros((len(digits), size), np.float32)
    encoded[np.arange(len(digits)), digits.astype(np.int64)] = 1
    return encoded


def _numbers(values: Any, shape: tuple[int, ...] | None = None) -> Array:
    """Return the values of all steps, of the given shape each if one is given."""
    array = as_array(values)
    if array.ndim == 0 or array.dtype.kind not in "fiub":
        raise UserError(f"observations are {array.dtype} and not numbers for each step; remove or repair it")
    if shape is not None and array.shape[1:] != shape:
        raise UserError(
            f"observations have shape {array.shape[1:]}, the space says {shape}; remove or repair it"
        )
    return array


def _single(values: Array) -> Array:
    return values if values.dtype == np.uint8 else values.astype(np.float32, copy=False)


def _batch_of_one(space: Space | None, observation: Any) -> Any:
    """Return an observation as an episode of one; what the space has no numbers for stays as it is."""
    if isinstance(space, gym.spaces.Dict) and isinstance(observation, dict):
        return {key: _batch_of_one(space.spaces.get(key), value) for key, value in observation.items()}
    if isinstance(space, gym.spaces.Tuple) and isinstance(observation, tuple | list):
        # Parts that are too many or too few are for the episode to refuse.
        parts = chain(space.spaces, repeat(None))
        return tuple(_batch_of_one(part, value) for value, part in zip(observation, parts, strict=False))
    return as_array(observation)[None] if isinstance(space, _PARTS) else observation


def _has(space: Space, wanted: Space) -> bool:
    if isinstance(wanted, gym.spaces.Dict):
        return isinstance(space, gym.spaces.Dict) and all(
            key in space.spaces and _has(space[key], part) for key, part in wanted.spaces.items()
        )
    if isinstance(wanted, gym.spaces.Tuple):
        return (
            isinstance(space, gym.spaces.Tuple)
            and len(space.spaces) == len(wanted.spaces)
            and all(map(_has, space.spaces, wanted.spaces))
        )
    if isinstance(wanted, gym.spaces.Box):
        return isinstance(space, gym.spaces.Box) and space.shape == wanted.shape
    return not isinstance(wanted, _PARTS) or same_choices(space, wanted)
