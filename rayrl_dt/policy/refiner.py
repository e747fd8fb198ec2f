"""What improves a policy's actions while acting: one interface for all ways of asking a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draw", "Refiner"]

Draw = Callable[[int, torch.Generator], Tensor]
"""Draws M actions of the policy for each of N slots, `(M, N, A)` in [-1, 1]."""


class Refiner(Protocol):
    """Refines the actions of all slots at once."""

    def __call__(
        self, observations: np.ndarray[Any, Any], actions: Tensor, draw: Draw | None = None
    ) -> Tensor:
        """Return better actions.

        Args:
            observations: `(N, S)` raw.
            actions: `(N, A)` of the policy, in [-1, 1].
            draw: other actions of a stochastic policy; None for a deterministic one.

        Returns:
            `(N, A)` in [-1, 1].
        """
