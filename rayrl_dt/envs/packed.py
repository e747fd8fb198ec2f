"""A picture and numbers beside it in one array of bytes, so that what holds and hands on observations holds both.

A picture as numbers of a vector would take four times its bytes, and no convolution would see it.

Shape legend: T steps, D numbers, `*pic` shape of the picture.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.errors import UserError

__all__ = ["Packed"]

Array = np.ndarray[Any, Any]


class Packed(gym.spaces.Box):
    """The bytes of D numbers in float32, and then those of a picture.

    Args:
        numbers: D.
        picture: its shape.

    Attributes:
        numbers, picture: as given.
    """

    def __init__(self, numbers: int, picture: tuple[int, ...]) -> None:
        self.numbers, self.picture = numbers, picture
        super().__init__(0, 255, (self.split + int(np.prod(picture)),), np.uint8)

    @property
    def split(self) -> int:
        """Where the picture begins."""
        return self.numbers * np.dtype(np.float32).itemsize

    def pack(self, numbers: Array, picture: Array) -> Array:
        """Return `(T, D)` and `(T, *pic)` as bytes `(T, n)`.

        Raises:
            UserError: the picture is of another shape or type, or a number is NaN or infinite.
        """
        if picture.shape[1:] != self.picture or picture.dtype != np.uint8:
            raise UserError(
                f"pictures are {picture.dtype} of shape {picture.shape[1:]}, the space says uint8 of {self.picture}; "
                "remove or repair it"
            )
        if not np.isfinite(numbers).all():
            raise UserError("observations hold NaN or infinite numbers; remove or repair that episode")
        words = np.ascontiguousarray(numbers, np.float32).view(np.uint8)  # (T, D) -> (T, 4 D)
        return np.concatenate([words, picture.reshape(len(picture), -1)], axis=1)

    def numbers_of(self, packed: Array) -> Array:
        """Return the numbers `(T, D)` of bytes `(T, n)`."""
        return np.ascontiguousarray(packed[:, : self.split]).view(np.float32)

    def __eq__(self, other: Any) -> bool:
        """Return whether another space packs the same."""
        return isinstance(other, Packed) and (self.numbers, self.picture) == (other.numbers, other.picture)

    def __repr__(self) -> str:
        """Return what is packed."""
        return f"Packed({self.numbers} numbers, picture of {self.picture})"
