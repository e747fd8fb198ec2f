"""Window batches, from memory and from files."""

from __future__ import annotations

from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.workload import BATCH_SIZE, CONTEXT_LENGTH, SEED, Bench
from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.seeding import numpy_generator

__all__ = ["measure"]


def measure(bench: Bench) -> list[Measurement]:
    """Measure window batches per second, from arrays in memory and mapped from files, generator included."""
    found = []
    stores = {"memory": bench.store, "mapped": TrajectoryStore.open(bench.folder)}
    for name, store in stores.items():
        bench.say(f"sampler: {name}")
        batch = 0

        def step(store: TrajectoryStore = store) -> int:
            nonlocal batch
            windows.sample(store, numpy_generator(SEED, "batch", 0, batch), BATCH_SIZE, CONTEXT_LENGTH)
            batch += 1
            return 1

        for _ in range(20):
            step()
        note = f"{BATCH_SIZE} windows of {CONTEXT_LENGTH} steps, generator included"
        found.append(measured(f"sampler/{name}", bench.rates(step), "batches/s", None, note))
    return found
