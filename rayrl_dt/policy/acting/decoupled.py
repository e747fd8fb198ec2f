"""Acting with the decoupled backbone: what is kept knows no return, so a target may change in mid-episode, or be many.

Shape legend: M courses of returns, n slots, K steps, d width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.models.decoupled import DecoupledTrunk
from rayrl_dt.policy.acting.decision_transformer import TransformerPlan

__all__ = ["DecoupledPlan"]

Array = np.ndarray[Any, Any]


class DecoupledPlan(TransformerPlan):
    """Acts with a `DecoupledTrunk`: the plan of states and actions, and then the newest return."""

    def newest(self, rows: Array | None) -> Tensor:
        """Return the features `(n, 1, d)` for the return that is asked for now."""
        return self._ask(super().newest(rows), self._returns(rows))

    def finish(self, x: Tensor) -> Tensor:
        """Return the features before any return, `(B, 1, d)`; see `DecoupledTrunk.last_block`."""
        trunk = self._model.trunk
        assert isinstance(trunk, DecoupledTrunk)
        return x if trunk.in_block else super().finish(x)

    def raw_for(self, shifts: Tensor, rows: Array | None) -> Tensor:
        """Ask for other returns with one forward of the trunk; see `ActingPlan.raw_for`."""
        with torch.inference_mode():
            context = super().newest(rows)  # (n, 1, d)
            returns = self._returns(rows) + shifts.to(torch.float32)[..., None, None]  # (M, n, 1, 1)
            raw: Tensor = self._model.head(self._ask(context, returns)[:, :, -1])  # (M, n, 1, d) -> (M, n, O)
            return raw

    def _returns(self, rows: Array | None) -> Tensor:
        """Return the newest returns-to-go, `(n, 1, 1)` raw."""
        return torch.from_numpy(self._context.window(rows).returns_to_go[:, -1:])

    def _ask(self, context: Tensor, returns: Tensor) -> Tensor:
        trunk = self._model.trunk
        assert isinstance(trunk, DecoupledTrunk)
        return trunk.ask(context, returns / self._model.spec.return_scale)
