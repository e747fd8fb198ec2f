"""Means of what gradient steps log."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["StepMeans"]


class StepMeans:
    """Averages each value over the steps that logged it: a policy may step less often than its critic.

    NaN is a step's way to say that it has nothing to log, where only a device knows that.

    Attributes:
        last: the means as they were taken last; saved, so that a resumed run reports what the whole one does.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what has been added since the last means."""
        self._totals: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, key: str, value: Tensor) -> None:
        """Add a detached value, where it is; nothing waits for a device."""
        known = ~value.isnan()
        value = value.where(known, 0.0)
        if key in self._totals:
            total, count = self._totals[key]
            self._totals[key] = total + value, count + known
        else:
            self._totals[key] = value, known.long()

    def take(self) -> dict[str, float]:
        """Return the means, the last one of what no step has logged since, and begin anew."""
        means = {key: float(total / count) for key, (total, count) in self._totals.items()}
        self.last |= {
            key: mean for key, mean in means.items() if key not in self.last or not math.isnan(mean)
        }
        self.begin()
        return self.last
