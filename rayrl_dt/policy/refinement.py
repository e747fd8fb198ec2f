"""The ways to act with a critic, of which a policy takes one."""

from __future__ import annotations

from typing import TypeAlias

from rayrl_dt.errors import UserError
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.sampled_actions import SampledActions

__all__ = ["Refinement", "WayToAct", "choose_refinement"]

Refinement: TypeAlias = ActionGradient | SampledActions | DoubleCheck
"""What asks a critic while acting."""
WayToAct: TypeAlias = Refinement | Guidance
"""Whatever can be tried on a trained policy."""


def choose_refinement(
    action_gradient: ActionGradient | None,
    sampled_actions: SampledActions | None,
    double_check: DoubleCheck | None = None,
) -> Refinement | None:
    """Return the one that is given, or None.

    Raises:
        UserError: there are several.
    """
    given = [way for way in (action_gradient, sampled_actions, double_check) if way is not None]
    if len(given) > 1:
        raise UserError(
            "an action gradient, sampled actions and a double check exclude each other; choose one"
        )
    return given[0] if given else None
