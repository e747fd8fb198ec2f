"""When a runner that is silent is taken for one that hangs."""

from __future__ import annotations

import time
from collections.abc import Collection

__all__ = ["Patience"]

_BETWEEN_LOOKS = 1.0


class Patience:
    """Counts how long each runner has been silent while somebody waited for it.

    Between two looks a second counts at most: a long evaluation, or a machine put to sleep, is no runner's silence.

    Args:
        seconds: that a runner may be silent.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._silent: dict[int, float] = {}
        self._looked = time.monotonic()

    def look(self, awaited: Collection[int], heard: Collection[int]) -> list[int]:
        """Count the time since the last look, and return the runners that hang; their count begins anew.

        Args:
            awaited: runners that have something to do.
            heard: those that have answered since the last look.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _BETWEEN_LOOKS), now
        self._silent = {
            runner: 0.0 if runner in heard else self._silent.get(runner, 0.0) + passed for runner in awaited
        }
        hanging = [runner for runner, silent in self._silent.items() if silent > self.seconds]
        for runner in hanging:
            del self._silent[runner]
        return hanging
