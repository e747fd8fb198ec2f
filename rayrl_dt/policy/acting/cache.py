"""What was computed of the recent steps of N environments, kept while the window slides over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["StepCache"]

Array = np.ndarray[Any, Any]


class StepCache:
    """Tensors of each step of `slots` environments, behind one write cursor, like `policy.context.ContextBuffer`.

    A field holds `(N, steps, *shape)`. Appending is one write per field, and the windows are views.

    Args:
        slots: N.
        context_length: K.
        fields: values of each field for one or more steps, `(N, steps, *shape)`; shape and dtype are taken from them.
        slack: steps between two moves of the windows to the front of the memory.
    """

    def __init__(self, slots: int, context_length: int, fields: Sequence[Tensor], *, slack: int = 64) -> None:
        self.context_length = context_length
        self._capacity = context_length + slack
        self._fields = [
            torch.zeros((slots, self._capacity, *field.shape[2:]), dtype=field.dtype) for field in fields
        ]
        self._end = context_length  # the window is [end - K, end)

    def advance(self, steps: int) -> None:
        """Move the window on by `steps`, at most K, whose values are to be written next."""
        if self._end + steps > self._capacity:
            keep = self.context_length - steps
            for field in self._fields:
                field[:, :keep] = field[:, self._end - keep : self._end].clone()
            self._end = keep
        self._end += steps

    def write(self, values: Sequence[Tensor]) -> None:
        """Write the newest steps of every field, `(N, steps, *shape)` each."""
        for field, value in zip(self._fields, values, strict=True):
            field[:, self._end - value.shape[1] : self._end] = value

    def clear(self, slots: Array) -> None:
        """Make the windows of some slots zero (index array or boolean mask)."""
        rows = torch.as_tensor(slots)
        for field in self._fields:
            field[rows, self._end - self.context_length : self._end] = 0

    def window(self, rows: Array | None) -> list[Tensor]:
        """Return each field's windows, `(N, K, *shape)`: views of all slots, or copy for the given ones."""
        span = slice(self._end - self.context_length, self._end)
        views = [field[:, span] for field in self._fields]
        return views if rows is None else [view[torch.as_tensor(rows)] for view in views]
