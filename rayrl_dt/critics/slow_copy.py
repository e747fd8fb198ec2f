"""A network's slow copy, which moves by one operation whatever the network is made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["OneVector", "SlowCopy"]


_ALIGNMENT = 64
"""Bytes: of a line of memory, where each weight begins; products of weights that do not may round differently."""


class OneVector:
    """Weights as views of one vector: on a CPU, one operation on it takes a fraction of one on each of them.

    Names, shapes and state dicts stay as they were.

    Args:
        weights: they move there.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self._weights = list(weights)
        line = _ALIGNMENT // self._weights[0].element_size()
        sizes = [-(-weight.numel() // line) * line for weight in self._weights]
        *self._begins, self._size = itertools.accumulate(sizes, initial=0)
        self._move_in()

    @property
    def vector(self) -> Tensor:
        """The vector; a new one where weights have left the one before, as after a move to another device."""
        first, size = self._vector.data_ptr(), self._vector.element_size()
        pairs = zip(self._weights, self._begins, strict=True)
        if not all(weight.data_ptr() == first + begin * size for weight, begin in pairs):
            self._move_in()
        return self._vector

    def zeros(self) -> tuple[Tensor, list[Tensor]]:
        """Return another vector of the same layout, with its pieces in the weights' shapes."""
        vector = self._weights[0].new_zeros(self._size, requires_grad=False)
        pairs = zip(self._weights, self._begins, strict=True)
        return vector, [vector[begin : begin + weight.numel()].view_as(weight) for weight, begin in pairs]

    def _move_in(self) -> None:
        self._vector, pieces = self.zeros()
        for weight, piece in zip(self._weights, pieces, strict=True):
            weight.data = piece.copy_(weight.detach())


class SlowCopy:
    """Moves a copy of a network towards it, a small share of the way at a time.

    Args:
        copy: of the network; its weights move.
        followed: the weights of the network, which several copies may follow.
    """

    def __init__(self, copy: nn.Module, followed: OneVector) -> None:
        self._copy, self._followed = OneVector(copy.parameters()), followed

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the copy by `share` of the way."""
        self._copy.vector.lerp_(self._followed.vector, share)
