"""When a runner that does not answer is taken for one that hangs."""

from __future__ import annotations

import time
from collections.abc import Collection

__all__ = ["SilenceTimer"]

_LONGEST_TICK_S = 1.0


class SilenceTimer:
    """Counts how long each runner has been silent while somebody waited for it.

    Between two calls a second counts at most: a long evaluation, or a machine put to sleep, is no runner's silence.

    Args:
        timeout_s: seconds that a runner may be silent.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._silent: dict[int, float] = {}
        self._last_tick = time.monotonic()

    def silent(self, runner: int) -> float:
        """Return how many seconds a runner has been silent for, as of the last count."""
        return self._silent.get(runner, 0.0)

    def expired(self, awaited: Collection[int], answered: Collection[int]) -> list[int]:
        """Count the time since the last call, and return the runners that hang; their count begins anew.

        Args:
            awaited: runners that have something to do.
            answered: those that have answered since the last call.
        """
        now = time.monotonic()
        passed, self._last_tick = min(now - self._last_tick, _LONGEST_TICK_S), now
        self._silent = {
            runner: 0.0 if runner in answered else self._silent.get(runner, 0.0) + passed
            for runner in awaited
        }
        hanging = [runner for runner, silent in self._silent.items() if silent > self.timeout_s]
        for runner in hanging:
            del self._silent[runner]
        return hanging
