"""Acting with guidance: away from what the policy does when nothing is asked for, towards its return and beyond.

A policy that was trained with return dropout knows both. With weight w its head reads u0 + w (u1 - u0), where u1 and u0
are what the head's layer gives for the return and for none (classifier-free guidance; Ho and Salimans 2022, and for
returns Frans et al. 2025). At 1 there is nothing to do, and no such plan.

Shape legend: M courses of returns, N slots, n slots that are wanted, O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.plan import ActingPlan
from rayrl_dt.policy.context import ContextBuffer

__all__ = ["GuidedPlan"]

Array = np.ndarray[Any, Any]


class GuidedPlan(ActingPlan):
    """Asks another plan for a return and for none, in one call.

    Args:
        plan: of the same model and windows.
        model: the policy network.
        context: the windows.
        precision: "fp32" or "bf16".
        weight: w; 0 acts as if nothing were asked for.
    """

    def __init__(
        self, plan: ActingPlan, model: SequenceModel, context: ContextBuffer, precision: str, weight: float
    ) -> None:
        super().__init__(model, context, precision)
        self._plan, self._weight = plan, weight

    def holds(self) -> bool:
        """Return whether the other plan does."""
        return self._plan.holds()

    def clear(self, slots: Array) -> None:
        """Have the other plan forget slots."""
        self._plan.clear(slots)

    def outputs(self, rows: Array | None) -> Tensor:
        """Return the guided outputs; see `ActingPlan.outputs`."""
        slots = self._context.slots if rows is None else len(rows)
        return self.outputs_for(torch.zeros(1, slots), rows)[0]

    def raw_for(self, shifts: Tensor, rows: Array | None) -> Tensor:
        """Return what the head reads for returns, guided; see `ActingPlan.raw_for`."""
        nothing = torch.full_like(shifts[:1], torch.nan)
        if self._weight == 0:
            return self._plan.raw_for(nothing, rows).expand(len(shifts), -1, -1)
        raw = self._plan.raw_for(torch.cat([shifts, nothing]), rows)  # (M + 1, n, O)
        return self._model.spec.head.guided(raw[:-1], raw[-1:].expand_as(raw[:-1]), self._weight)
