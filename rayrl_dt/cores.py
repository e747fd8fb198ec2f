"""How many cores this process may use: those that a container, a job or its affinity gives it, not the machine's."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["busy", "usable_cores"]

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS) -> int:
    """Return the number of cores, at least 1: within the affinity, and within the quota of the control group.

    Args:
        groups: where the control groups are mounted, of version 2 or 1.
    """
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(mine, _quota(groups))))


def busy(threads: int) -> str | None:
    """Return what to do where so many threads of a process would wait for one another; None where they would not.

    Threads that compute together wait for the slowest of them at every product, and while other work holds a core that
    one waits for its turn.
    """
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if threads < 2 or load <= cores:
        return None
    return (
        f"this machine is busy (load {load:.1f}, {cores} cores), and {threads} threads wait for one another then: "
        "small models are several times as fast with OMP_NUM_THREADS=1"
    )


def _quota(groups: Path) -> float:
    """Return how many cores' time the control group has; infinity without a bound."""
    try:
        words = (groups / "cpu.max").read_text().split()
    except OSError:
        try:
            folder = groups / "cpu"
            words = [(folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:
            return math.inf
    try:
        quota, period = map(int, words)
    except ValueError:  # "max"
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
