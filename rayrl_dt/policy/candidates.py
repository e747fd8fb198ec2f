"""A critic's view of several actions for one observation, in raw units.

Shape legend: M candidates, N rows (slots), S observation dimensions, A action dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.models.spec import PolicySpec

__all__ = ["CandidateCritic", "RawObservations", "best_of"]


class RawObservations:
    """Brings raw observations to the scale that a policy's critics read.

    Args:
        spec: of the policy.
        device: of the critic.
    """

    def __init__(self, spec: PolicySpec, device: torch.device) -> None:
        self.device = device
        self._mean = torch.as_tensor(spec.normalizer.mean, device=device)
        self._std = torch.as_tensor(spec.normalizer.std, device=device)

    def __call__(self, observations: np.ndarray[Any, Any]) -> Tensor:
        """Return `(N, S)` normalized, on the critic's device."""
        raw = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        return (raw - self._mean) / self._std


class CandidateCritic:
    """Says what a twin critic makes of each of several actions.

    Args:
        critic: in the units of the policy.
        spec: of the policy; normalizes observations.
    """

    def __init__(self, critic: TwinCritic, spec: PolicySpec) -> None:
        self._critic = critic
        self._normalize = RawObservations(spec, next(critic.parameters()).device)

    def __call__(
        self, observations: np.ndarray[Any, Any], actions: Tensor, others: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the candidates and their values, the lower one of the twins'.

        Args:
            observations: `(N, S)` raw.
            actions: `(N, A)` of the policy. They come first: of equally good ones they are taken.
            others: `(M - 1, N, A)`.

        Returns:
            `(M, N, A)` and `(M, N)`, float32 on the critic's device.
        """
        device = self._normalize.device
        candidates = torch.cat([actions[None], others.to(actions.device)]).to(
            device, torch.float32
        )  # (M, N, A)
        normalized = self._normalize(observations).expand(len(candidates), -1, -1)  # (N, S) -> (M, N, S)
        return candidates, self._critic(normalized, candidates).amin(dim=0)  # (2, M, N) -> (M, N)


def best_of(candidates: Tensor, merit: Tensor) -> Tensor:
    """Return the candidate `(N, A)` with the highest merit `(M, N)`; one that is NaN is no improvement."""
    best = merit.nan_to_num(nan=-math.inf).argmax(dim=0)  # (N,)
    return candidates[best, torch.arange(candidates.shape[1], device=candidates.device)]
