"""What improves a policy's actions while acting: one interface for all ways of asking a critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Asked", "Draw", "Refiner"]

Draw = Callable[[int, torch.Generator], Tensor]
"""Draws M actions of the policy for each of N slots, `(M, N, A)` in [-1, 1]."""


@dataclass(frozen=True)
class Asked:
    """What the policy was asked for, and what it does where it is asked for something else.

    Attributes:
        returns_to_go: `(N,)` raw.
        actions_for: from shifts of the returns, `(M, N)` raw, to actions `(M, N, A)` in [-1, 1].
    """

    returns_to_go: np.ndarray[Any, Any]
    actions_for: Callable[[Tensor], Tensor]


class Refiner(Protocol):
    """Refines the actions of all slots at once."""

    def __call__(
        self,
        observations: np.ndarray[Any, Any],
        actions: Tensor,
        draw: Draw | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Return better actions.

        Args:
            observations: `(N, S)` raw.
            actions: `(N, A)` of the policy, in [-1, 1].
            draw: other actions of a stochastic policy; None for a deterministic one.
            asked: for which returns, and what would be done for others.

        Returns:
            `(N, A)` in [-1, 1].
        """
