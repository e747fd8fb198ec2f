"""Which arithmetic to use: bf16 where the hardware multiplies it natively, fp32 everywhere else."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from rayrl_dt.errors import UserError

__all__ = ["PRECISIONS", "autocast", "cpu_has_bf16", "dtype_of", "resolve"]

PRECISIONS = ("auto", "bf16", "fp32")


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 matrix instructions (AVX512-BF16, AMX, Arm); emulation is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def resolve(precision: str, device: torch.device | str) -> str:
    """Returns "bf16" or "fp32" for a device.

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
    """Returns the type of the numbers that a resolved precision multiplies."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Returns the autocast context of a resolved precision."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")
