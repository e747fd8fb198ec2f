"""Which arithmetic to use: bf16 where the hardware multiplies it natively, fp32 everywhere else."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from pathlib import Path

import torch

from rayrl_dt.errors import UserError

__all__ = [
    "PRECISIONS",
    "autocast",
    "cpu_has_bf16",
    "dtype_of",
    "keep_freed_memory",
    "resident_memory",
    "resolve",
]

PRECISIONS = ("auto", "bf16", "fp32")


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Return whether this CPU has bf16 matrix instructions (AVX512-BF16, AMX, Arm); emulation is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def resolve(precision: str, device: torch.device | str) -> str:
    """Return "bf16" or "fp32" for a device.

    Raises:
        UserError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise UserError(f"training.precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_has_bf16()
    return "bf16" if native else "fp32"


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of the numbers that a resolved precision multiplies."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Return the autocast context of a resolved precision."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")


_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks instead of returning them to the kernel; True if it obeyed.

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
    """Return a process's memory in bytes: resident (`rss`), its fair share (`pss`), its own (`uss`).

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
