"""Memory of this process: how the C allocator returns it, and how much of it is shared."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

__all__ = ["keep_freed_memory", "resident_memory"]

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks instead of returning them to the kernel; True if it obeyed.

    A training step on a CPU allocates and frees megabyte blocks all the time. By default glibc maps each
    afresh, and zeroing its pages costs 5-10% of a step. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, 1 << 30) == 1
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1)


def resident_memory(pid: int | str = "self") -> dict[str, int]:
    """Returns a process's memory in bytes: resident (`rss`), its fair share (`pss`), its own (`uss`).

    Pages that several processes map count once in total in `pss`, and not at all in `uss`. Linux only.
    """
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        sizes[name] = int(value.split()[0]) * 1024
    return {
        "rss": sizes["Rss"],
        "pss": sizes["Pss"],
        "uss": sizes["Private_Clean"] + sizes["Private_Dirty"],
    }
