"""What one iteration of finetuning has collected, for its line in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rayrl_dt.evaluation.rollout import EpisodeRecord

__all__ = ["Collected"]


@dataclass
class Collected:
    """What one iteration has collected, in one round, in several, or in the results that runners have sent.

    Attributes:
        env_steps: environment steps, those of unfinished episodes included.
        seconds: that they took.
        lags: gradient steps by which the weights behind each result were old when it came; none in rounds, where
            everything is collected with the weights that the round began with.
        returns: raw returns of its episodes, each with the one that it was asked for.
    """

    env_steps: int = 0
    seconds: float = 0.0
    lags: list[int] = field(default_factory=list)
    returns: list[tuple[float, float]] = field(default_factory=list)

    def mean_returns(self, episodes: Sequence[EpisodeRecord]) -> tuple[float, float]:
        """Add finished episodes; return the mean raw return of all so far, and the mean of what was asked for."""
        self.returns += [(episode.episode_return, episode.target) for episode in episodes]
        achieved, asked = zip(*self.returns, strict=True)
        return fmean(achieved), fmean(asked)

    def report(self) -> dict[str, Any]:
        """Return how fast it was, and how old the weights were."""
        return {
            "env_steps_per_s": self.env_steps / self.seconds if self.seconds else None,
            "policy_lag_mean": fmean(self.lags) if self.lags else None,
            "policy_lag_max": max(self.lags, default=None),
        }
