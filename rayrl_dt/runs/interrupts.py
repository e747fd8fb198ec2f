"""Ctrl-C during a run: the first one asks it to stop, the second one interrupts.

SIGTERM (a cluster's) and SIGHUP (of a terminal that is closed) ask alike.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["on_interrupt"]


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first Ctrl-C (or SIGTERM, or SIGHUP); the next one interrupts as usual."""
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        stop()
        signal.signal(number, before[number])

    try:
        for wanted in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, wanted, None)  # Windows has no SIGHUP
            if number is not None:
                before[int(number)] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: the caller handles signals
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
