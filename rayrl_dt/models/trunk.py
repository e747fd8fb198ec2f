"""What a trunk is: normalized inputs in, one feature vector per read step out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Trunk", "TrunkInputs"]


@dataclass(frozen=True)
class TrunkInputs:
    """A window in model units. Padding holds zeros.

    Attributes:
        returns_to_go: `(B, K, 1)` scaled.
        observations: `(B, K, *obs)` normalized.
        actions: `(B, K, A)` in [-1, 1], or `(B, K)` int64.
        timesteps: `(B, K)`.
        mask: `(B, K)` bool, or None if no step of the batch is padding.
    """

    returns_to_go: Tensor
    observations: Tensor
    actions: Tensor
    timesteps: Tensor
    mask: Tensor | None


class Trunk(nn.Module, ABC):
    """A backbone: everything between normalized inputs and the action head."""

    @abstractmethod
    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, P, d)` of the last P steps: P is 1 with `last_only`, else K (1 for the MLP)."""

    def initialize_head(self, head: nn.Linear) -> None:
        """Initialize the action head, where the backbone's authors do not leave it to PyTorch."""
        del head
