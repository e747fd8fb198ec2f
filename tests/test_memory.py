from __future__ import annotations

import subprocess
import sys

import pytest

from rayrl_dt.precision import keep_freed_memory, resident_memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_resident_memory_sees_what_is_allocated() -> None:
    # In a process of its own: in this one, blocks that other tests freed may be handed out again.
    script = """
import os
import numpy as np
from rayrl_dt.precision import resident_memory
before = resident_memory()
assert 0 < before["uss"] <= before["pss"] <= before["rss"]
size = 64 << 20
block = np.ones(size, np.uint8)
after = resident_memory(os.getpid())
for name in ("rss", "pss", "uss"):
    assert size * 0.9 < after[name] - before[name] < size * 1.5, (name, before, after)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@linux
def test_an_unknown_process_is_an_error() -> None:
    with pytest.raises(OSError, match="999999999"):
        resident_memory(999_999_999)


def test_the_allocator_is_told_to_keep_memory() -> None:
    # In a process of its own: the setting stays.
    code = "from rayrl_dt.precision import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() in ("True", "False")


def test_elsewhere_than_on_linux_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
