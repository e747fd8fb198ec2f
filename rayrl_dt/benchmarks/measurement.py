"""One figure of a benchmark, with all that it depends on."""

from __future__ import annotations

import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rayrl_dt import precision

__all__ = ["Measurement", "measured"]


@dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
        name: what was measured, as `part/quantity`.
        value: the median over the repeats.
        unit: of the value.
        detail: the spread, and what the figure depends on (threads, precision, CPU, torch version).
    """

    name: str
    value: float
    unit: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def measured(name: str, values: list[float], unit: str, config: Any, note: str) -> Measurement:
    """Return the median, with all that it depends on; `config` is None where no network takes part."""
    arithmetic = [] if config is None else [precision.resolve(config.precision, "cpu")]
    threads = torch.get_num_threads()
    spread = f"{min(values):.4g} to {max(values):.4g} in {len(values)} repeats"
    facts = [
        note,
        spread,
        f"{threads} thread{'s' if threads > 1 else ''}",
        *arithmetic,
        _cpu(),
        f"torch {torch.__version__}",
    ]
    return Measurement(name, statistics.median(values), unit, "; ".join(facts))


def _cpu() -> str:
    """Return the CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
