"""Ctrl-C during a run: the first one asks it to stop, the second one interrupts.

SIGTERM (a cluster's) and SIGHUP (of a terminal that is closed) ask alike; under `nohup` a run outlives its terminal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["on_interrupt"]


@contextmanager
def on_interrupt(
    stop: Callable[[], None], also: Sequence[signal.Signals] = (signal.SIGINT,)
) -> Iterator[None]:
    """Call `stop` on the first SIGTERM, SIGHUP or one of `also` (Ctrl-C); the next one interrupts as usual."""
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        stop()
        signal.signal(number, before[number])

    try:
        for wanted in (*also, signal.SIGTERM, *_hangup()):
            before[int(wanted)] = signal.signal(wanted, handle)
    except ValueError:  # not in the main thread: the caller handles signals
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hangup() -> list[signal.Signals]:
    """Return SIGHUP, but on Windows, which has none, and where `nohup` has it ignored."""
    found = [each for each in signal.Signals if each.name == "SIGHUP"]
    return [each for each in found if signal.getsignal(each) is not signal.SIG_IGN]
