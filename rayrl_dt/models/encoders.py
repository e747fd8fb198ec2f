"""From normalized observations and actions to tokens."""

from __future__ import annotations

from torch import nn

from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["action_encoder", "observation_encoder"]


def observation_encoder(spec: PolicySpec, width: int) -> nn.Module:
    """Return a module `(B, K, *obs) -> (B, K, width)`.

    Raises:
        UserError: the observations are not vectors.
    """
    shape = spec.observation_space.shape or ()
    if len(shape) != 1:
        raise UserError(
            f"observations of shape {shape} are not supported yet; allowed are vectors: wrap the environment "
            "with gymnasium.wrappers.FlattenObservation"
        )
    return nn.Linear(shape[0], width)


def action_encoder(spec: PolicySpec, width: int) -> nn.Module:
    """Return a module `(B, K, A)` or `(B, K)` -> `(B, K, width)`."""
    return nn.Embedding(spec.action_size, width) if spec.discrete else nn.Linear(spec.action_size, width)
