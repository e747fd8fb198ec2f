"""Reacher-v5 with a Jacobian-transpose controller of graded skill."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["jacobian_transpose"]

Array = np.ndarray[Any, Any]
_UPPER_ARM, _LOWER_ARM = 0.1, 0.11
_STIFFNESS, _DAMPING = 12.0, 0.06


def jacobian_transpose(observations: Array) -> Array:
    """Pull the fingertip to the target like a damped spring: `(E, 10)` observations to `(E, 2)` torques."""
    cosine, sine = observations[:, 0:2], observations[:, 2:4]
    velocity, error = observations[:, 6:8], observations[:, 8:10]
    # The lower arm's angle counts from the upper arm's.
    both_cosine = cosine[:, 0] * cosine[:, 1] - sine[:, 0] * sine[:, 1]
    both_sine = sine[:, 0] * cosine[:, 1] + cosine[:, 0] * sine[:, 1]
    elbow = _LOWER_ARM * np.stack([-both_sine, both_cosine], axis=1)
    shoulder = elbow + _UPPER_ARM * np.stack([-sine[:, 0], cosine[:, 0]], axis=1)
    jacobian = np.stack([shoulder, elbow], axis=1)  # (E, joints, xy)
    pull: Array = np.einsum("ejx,ex->ej", jacobian, -error)
    return _STIFFNESS * pull - _DAMPING * velocity
