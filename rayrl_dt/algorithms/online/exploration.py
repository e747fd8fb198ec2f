"""Which return collection asks for: a constant, as in the papers, or what the replay suggests (a curriculum)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = ["EXPLORATION", "Best", "Exploration", "Quantiles"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Exploration:
    """A law of targets.

    Attributes:
        span: raw return between the worst and the best logged episode, the unit of `margin`.
        margin: how far beyond the best that is known targets may go, in spans.
        quantile: of the known returns, from which on targets are drawn.
        reads: the settings of `online` that it reads.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"exploration_margin"})

    span: float
    margin: float
    quantile: float

    @abstractmethod
    def target(self, returns: Array, rng: np.random.Generator) -> float:
        """Return a raw target.

        Args:
            returns: `(E,)` raw returns of the episodes in the replay, E >= 1.
            rng: of the episode that is to be asked for it.
        """


class Best(Exploration):
    """Ask for the best so far, and a margin."""

    def target(self, returns: Array, rng: np.random.Generator) -> float:
        """Return the highest return and the margin."""
        return float(returns.max()) + self.margin * self.span


class Quantiles(Exploration):
    """Ask for what good episodes achieved, each time for another one, and the margin."""

    reads = frozenset({"exploration_margin", "exploration_quantile"})

    def target(self, returns: Array, rng: np.random.Generator) -> float:
        """Return a quantile that is drawn between `quantile` and 1, and the margin."""
        drawn = np.quantile(returns, rng.uniform(self.quantile, 1.0))
        return float(drawn) + self.margin * self.span


EXPLORATION: dict[str, type[Exploration] | None] = {"constant": None, "best": Best, "quantiles": Quantiles}
"""By their names in `online.exploration_targets`; another one is a class and a row here."""
