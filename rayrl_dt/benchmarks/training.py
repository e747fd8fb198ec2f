"""Gradient steps of `algo.train()`."""

from __future__ import annotations

import time
from typing import Any

from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import ray_running, running
from rayrl_dt.benchmarks.workload import REPEATS, Bench

__all__ = ["measure"]


def measure(bench: Bench) -> list[Measurement]:
    """Measure gradient steps per second of `algo.train()` with a local learner, sampling included."""
    bench.say("train: gradient steps")
    with ray_running(), running(bench.config()) as algorithm:
        _iterate(algorithm, min(1.0, bench.seconds))
        rates = [_iterate(algorithm, bench.seconds / REPEATS) for _ in range(REPEATS)]
        return [
            measured(
                "train/gradient_steps", rates, "steps/s", algorithm.config, "algo.train(), sampling included"
            )
        ]


def _iterate(algorithm: Any, seconds: float) -> float:
    """Run one iteration that ends after about `seconds`; return its gradient steps per second."""
    taken = algorithm.gradient_steps
    begin = time.perf_counter()
    algorithm.observe_steps(lambda step, loss: time.perf_counter() - begin < seconds)
    algorithm.train()
    return float((algorithm.gradient_steps - taken) / (time.perf_counter() - begin))
