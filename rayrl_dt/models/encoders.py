"""From raw windows to what a trunk reads: normalised observations, scaled returns, actions in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["TrunkInputs", "action_encoder", "observation_encoder"]


@dataclass(frozen=True)
class TrunkInputs:
    """A window in model units. Padding holds zeros.

    Attributes:
        returns_to_go: `(B, K, 1)` scaled.
        observations: `(B, K, *obs)` normalised.
        actions: `(B, K, A)` in [-1, 1], or `(B, K)` int64.
        timesteps: `(B, K)`.
        mask: `(B, K)` bool, or None if no step of the batch is padding.
    """

    returns_to_go: Tensor
    observations: Tensor
    actions: Tensor
    timesteps: Tensor
    mask: Tensor | None


def observation_encoder(spec: PolicySpec, width: int) -> nn.Module:
    """Returns a module `(B, K, *obs) -> (B, K, width)`.

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
    """Returns a module `(B, K, A)` or `(B, K)` -> `(B, K, width)`."""
    return nn.Embedding(spec.action_size, width) if spec.discrete else nn.Linear(spec.action_size, width)
