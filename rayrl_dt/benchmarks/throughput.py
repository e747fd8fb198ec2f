"""What goes through the parts: window batches, gradient steps, environment steps, each by itself."""

from __future__ import annotations

import time
from typing import Any

from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import ray_running, running
from rayrl_dt.benchmarks.workload import BATCH_SIZE, CONTEXT_LENGTH, ENV, REPEATS, ROLLOUT_SLOTS, SEED, Bench
from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.seeding import numpy_generator

__all__ = ["rollout", "sampler", "train"]


def sampler(bench: Bench) -> list[Measurement]:
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


def train(bench: Bench) -> list[Measurement]:
    """Measure gradient steps per second of `algo.train()` with a local learner, sampling included."""
    bench.say("train: gradient steps")
    note = "algo.train(), sampling included"
    with ray_running(), running(bench.config()) as algorithm:
        _iterate(algorithm, min(1.0, bench.seconds))
        rates = [_iterate(algorithm, bench.seconds / REPEATS) for _ in range(REPEATS)]
        return [measured("train/gradient_steps", rates, "steps/s", algorithm.config, note)]


def _iterate(algorithm: Any, seconds: float) -> float:
    """Run one iteration that ends after about `seconds`; return its gradient steps per second."""
    taken = algorithm.gradient_steps
    begin = time.perf_counter()
    algorithm.observe_steps(lambda step, loss: time.perf_counter() - begin < seconds)
    algorithm.train()
    return float((algorithm.gradient_steps - taken) / (time.perf_counter() - begin))


def rollout(bench: Bench) -> list[Measurement]:
    """Measure environment steps per second of the env runner in Hopper, which never falls: contexts are full."""
    from rayrl_dt.algorithms.runners.env_runner import SequenceEnvRunner

    found = []
    with ray_running():
        for slots in ROLLOUT_SLOTS:
            bench.say(f"rollout: {slots} environment{'s' if slots > 1 else ''}")
            config = bench.config()
            config.environment(ENV, env_config={"terminate_when_unhealthy": False})
            config.env_runners(num_envs_per_env_runner=slots)
            config.resolve(bench.store)
            runner = SequenceEnvRunner(config=config)

            def step(runner: Any = runner, steps: int = 10 * slots) -> int:
                runner.sample(num_timesteps=steps, explore=False)
                return steps

            try:
                step(steps=slots * (CONTEXT_LENGTH + 5))
                rates = bench.rates(step)
            finally:
                runner.stop()
            note = f"{ENV}, one process, {slots} slots, contexts full"
            found.append(measured(f"rollout/env_steps_{slots}", rates, "env-steps/s", config, note))
    return found
