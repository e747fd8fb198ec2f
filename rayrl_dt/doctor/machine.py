"""This machine: its cores, memory, arithmetic, GPUs, and the shared memory that Ray keeps objects in."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from rayrl_dt import precision as precisions
from rayrl_dt.cores import usable_cores
from rayrl_dt.doctor.check import GIB, Check, size, verdict

__all__ = ["cpu", "cuda", "memory", "precision", "shared_memory"]

_MEMORY = Path("/proc/meminfo")
_MIN_MEMORY = 4 * GIB
_TAKEN = f"training, Ray and environments take {size(_MIN_MEMORY)}"
_SHARED_MEMORY = Path("/dev/shm")
# Ray's own default share of the memory.
_OBJECT_STORE_SHARE = 0.3


def cpu() -> list[Check]:
    """Check whether there are cores enough."""
    cores, usable = os.cpu_count() or 1, usable_cores()
    remedy = "give the process 2 cores or more: Ray shares them with training"
    return verdict("CPU", f"{usable} of {cores} cores usable", good=usable >= 2, remedy=remedy)


def memory() -> list[Check]:
    """Check whether there is memory enough."""
    if not _MEMORY.is_file():  # macOS, Windows
        return [Check("memory", "ok", f"cannot be read here; {_TAKEN}")]
    total, available = _memory_sizes()
    found = f"{size(available)} available of {size(total)}"
    remedy = f"free some: {_TAKEN}"
    return verdict("memory", found, good=available >= _MIN_MEMORY, remedy=remedy)


def precision() -> list[Check]:
    """Say which arithmetic training takes on this CPU."""
    native = "has" if precisions.cpu_has_bf16() else "has no"
    chosen = precisions.resolve("auto", "cpu")
    found = f"the CPU {native} bf16 arithmetic; precision: auto gives {chosen} on it"
    return [Check("precision", "ok", found)]


def cuda() -> list[Check]:
    """Say which GPUs torch can use."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} ({size(device.total_memory)})" for device in devices)
        chosen = precisions.resolve("auto", "cuda")
        return [Check("CUDA", "ok", f"{names}; precision: auto gives {chosen} on it")]
    if not Path("/proc/driver/nvidia").exists():
        return [Check("CUDA", "ok", "no device: training runs on the CPU")]
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    remedy = "install the torch build that fits the driver: https://pytorch.org/get-started"
    return [Check("CUDA", "warning", f"there is a driver, but torch {torch.__version__} is {built}", remedy)]


def shared_memory(store: float | None) -> list[Check]:
    """Check whether the shared memory of this machine holds Ray's object store.

    Args:
        store: the object store of this machine in bytes; None if Ray does not run, for what it would take.
    """
    if not _SHARED_MEMORY.is_dir():
        return []
    total = shutil.disk_usage(_SHARED_MEMORY).total
    wanted = store or _OBJECT_STORE_SHARE * _memory_sizes()[0]
    found = f"{_SHARED_MEMORY} has {size(total)}; the object store takes {size(wanted)}"
    remedy = f"start the container with --shm-size={max(1, round(wanted / GIB))}g, else Ray uses the disk"
    return verdict("shared memory", found, good=total >= wanted, remedy=remedy)


def _memory_sizes() -> tuple[int, int]:
    """Return total and available memory in bytes, within the container's limit."""
    kibibytes = re.findall(r"^(?:MemTotal|MemAvailable): +(\d+)", _MEMORY.read_text(), re.MULTILINE)
    total, available = (int(value) * 1024 for value in kibibytes)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" is no number
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(0, limit - used))
