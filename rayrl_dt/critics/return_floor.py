"""Calibrated values: what keeps conservative critics at the scale of real returns.

Shape legend: B batch, M sampled actions, n of them the policy's.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["calibrated"]


def calibrated(values: Tensor, returns: Tensor, *, of_policy: int) -> Tensor:
    """Raise the values of the policy's actions to the return that the data achieved (Cal-QL, Nakamoto et al. 2023).

    What is floored is pushed down no further, so that critics keep the scale of real returns, and finetuning does not
    begin by unlearning values that are too low. Random actions are not floored.

    Args:
        values: `(2, B, M)` of sampled actions.
        returns: `(B, 1)` discounted returns from the state on, in the critics' units.
        of_policy: how many of the M are the policy's; they come first.

    Returns:
        `(2, B, M)`; what is floored has no gradient.
    """
    floored = torch.maximum(values[..., :of_policy], returns.to(values.dtype))  # (2, B, n) with (B, 1)
    return torch.cat([floored, values[..., of_policy:]], dim=-1)
