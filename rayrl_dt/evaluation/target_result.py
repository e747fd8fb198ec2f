"""The episodes of one target: what was asked for, and what was achieved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.statistics import Interval, mean, stratified_bootstrap

__all__ = ["TargetResult"]


@dataclass(frozen=True)
class TargetResult:
    """The episodes of one target.

    Attributes:
        target: the raw return asked for.
        returns: the raw return of each episode.
        lengths: the steps of each episode.

    Raises:
        UserError: there is no episode, the lists disagree, or a number is not finite.
    """

    target: float
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        # Plain Python numbers, whatever array the caller cut them from: this is written as JSON.
        object.__setattr__(self, "target", float(self.target))
        object.__setattr__(self, "returns", tuple(float(value) for value in self.returns))
        object.__setattr__(self, "lengths", tuple(int(value) for value in self.lengths))
        if not self.returns or len(self.returns) != len(self.lengths):
            raise UserError(
                f"target {self.target:g} has {len(self.returns)} returns and {len(self.lengths)} lengths; "
                "evaluate at least one episode per target"
            )
        if not all(math.isfinite(value) for value in (self.target, *self.returns)):
            raise UserError(
                f"target {self.target:g} has a NaN or infinite return; check the environment's rewards"
            )

    @property
    def return_mean(self) -> float:
        """Mean raw return over the episodes."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation over the episodes (divided by n, not n - 1)."""
        return float(np.std(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean steps of an episode."""
        return float(np.mean(self.lengths))

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @cached_property
    def return_interval(self) -> Interval:
        """The mean raw return with its 95% bootstrap interval over episodes."""
        return stratified_bootstrap([self.returns], mean)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict: figures, then what is needed to compute them again."""
        return {
            "target": self.target,
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "length_mean": self.length_mean,
            "episodes": self.episodes,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TargetResult:
        """Inverse of `to_json`."""
        return cls(values["target"], tuple(values["returns"]), tuple(values["lengths"]))
