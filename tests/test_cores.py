"""The cores of a container are those that it was given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayrl_dt.cores import busy, usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_the_control_group_counts(
    files: dict[str, str], cores: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


def test_the_affinity_counts(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert usable_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize(("threads", "load", "said"), [(2, 0.1, False), (1, 50.0, False), (2, 50.0, True)])
def test_threads_on_a_busy_machine_are_warned_of(
    threads: int, load: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    note = busy(threads)
    assert (note is not None) == said
    assert note is None or ("load 50.0, 2 cores" in note and "OMP_NUM_THREADS=1" in note)
