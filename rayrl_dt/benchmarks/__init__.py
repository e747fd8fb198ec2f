"""How fast the parts are on this machine: sampling, gradient steps, RLlib's overhead, rollouts, online updates.

One fixed piece of work, so that figures compare between machines, versions and libraries: Hopper-sized data (11
observations, 3 actions, 100 episodes of 500 steps made from a seed) and a Decision Transformer (or another backbone)
of 3 layers, width 128, 1 head, context 20, dropout 0.1, on batches of 64 windows. Online updates are measured at a
smaller size, too. Nothing is downloaded or kept.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from rayrl_dt.benchmarks import beyond, learner, online, throughput
from rayrl_dt.benchmarks.measurement import Measurement
from rayrl_dt.benchmarks.workload import MODEL as _MODEL
from rayrl_dt.benchmarks.workload import Bench, Progress
from rayrl_dt.benchmarks.workload import make_store as _make_store
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.models.backbones import BACKBONES

__all__ = ["KINDS", "Measurement", "Progress", "run"]

_MEASURES = {
    "train": throughput.train,
    "rollout": throughput.rollout,
    "sampler": throughput.sampler,
    "learner": learner.measure,
    "online": online.measure,
    "beyond": beyond.measure,
}
KINDS = tuple(_MEASURES)


def run(
    which: str,
    *,
    backbone: str = "dt",
    seconds: float = 8.0,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure one part of the package, or all of them.

    Args:
        which: one of `KINDS`, or "all".
        backbone: of the model that is trained and rolled out.
        seconds: wall time of each figure, without set-up and warm-up.
        threads: torch threads while measuring; the former number is restored.
        progress: told in a few words what is being measured.

    Raises:
        UserError: `which` is unknown, or a number is not positive.
    """
    kinds = KINDS if which == "all" else (which,)
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"unknown benchmark {which!r}.{suggest(which, (*KINDS, 'all'))}")
    if backbone not in BACKBONES:
        raise UserError(f"unknown backbone {backbone!r}.{suggest(backbone, BACKBONES)}")
    if not seconds > 0:
        raise UserError(f"seconds is {seconds}; it must be a positive number")
    if threads < 1:
        raise UserError(f"threads is {threads}; it must be at least 1")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="rayrl_dt-bench-") as folder:
            bench = Bench(
                store=_make_store(),
                folder=Path(folder) / "store",
                model={**_MODEL, "backbone": backbone},
                seconds=seconds,
                progress=progress,
            )
            bench.store.save(bench.folder)
            return [measurement for kind in kinds for measurement in _MEASURES[kind](bench)]
    finally:
        torch.set_num_threads(threads_before)
