"""A network's slow copy, which moves by one operation whatever the network is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["SlowCopy"]


_ALIGNMENT = 64
"""Bytes: of a line of memory, where each weight begins; products of weights that do not may round differently."""


class SlowCopy:
    """Moves a copy of a network towards it, a small share of the way at a time.

    The weights of each become views of one vector: on a CPU, moving tensor by tensor takes several times as long.
    Names, shapes and state dicts stay as they were.

    Args:
        copy: of `network`; its weights move.
        network: what it follows.
    """

    def __init__(self, copy: nn.Module, network: nn.Module) -> None:
        self._weights = [list(module.parameters()) for module in (copy, network)]
        self._vectors = [_one_vector(weights) for weights in self._weights]

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the copy by `share` of the way."""
        for number, weights in enumerate(self._weights):
            if not _is_in(weights, self._vectors[number]):  # as after a move to another device
                self._vectors[number] = _one_vector(weights)
        copy, network = self._vectors
        copy.lerp_(network, share)


def _one_vector(weights: Sequence[nn.Parameter]) -> Tensor:
    """Move weights into one vector that they become views of."""
    *begins, size = _begins(weights)
    vector = weights[0].new_zeros(size, requires_grad=False)
    for weight, begin in zip(weights, begins, strict=True):
        piece = vector[begin : begin + weight.numel()].view_as(weight)
        weight.data = piece.copy_(weight.detach())
    return vector


def _is_in(weights: Sequence[nn.Parameter], vector: Tensor) -> bool:
    """Return whether weights still are the pieces of a vector."""
    first, size = vector.data_ptr(), vector.element_size()
    pairs = zip(weights, _begins(weights), strict=False)  # the last number is the vector's length
    return all(weight.data_ptr() == first + begin * size for weight, begin in pairs)


def _begins(weights: Sequence[nn.Parameter]) -> list[int]:
    """Where each weight begins in a vector, in elements, and where the next one would."""
    begins, line = [0], _ALIGNMENT // weights[0].element_size()
    for weight in weights:
        begins.append(begins[-1] + -(-weight.numel() // line) * line)
    return begins
