"""Environment steps of one env runner."""

from __future__ import annotations

from typing import Any

from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import ray_running
from rayrl_dt.benchmarks.workload import CONTEXT_LENGTH, ENV, Bench

__all__ = ["measure"]


def measure(bench: Bench) -> list[Measurement]:
    """Measure environment steps per second of the env runner in Hopper, which never falls: contexts are full."""
    from rayrl_dt.algorithms.runners.env_runner import SequenceEnvRunner

    found = []
    with ray_running():
        for slots in bench.rollout_slots:
            bench.say(f"rollout: {slots} environment{'s' if slots > 1 else ''}")
            config = bench.config()
            config.environment(ENV, env_config={"terminate_when_unhealthy": False})
            config.env_runners(num_envs_per_env_runner=slots)
            config.resolve(bench.store)
            runner = SequenceEnvRunner(config=config)
            try:
                rates = _rollout_rates(bench, runner, slots)
            finally:
                runner.stop()
            note = f"{ENV}, one process, {slots} slots, contexts full"
            found.append(measured(f"rollout/env_steps_{slots}", rates, "env-steps/s", config, note))
    return found


def _rollout_rates(bench: Bench, runner: Any, slots: int) -> list[float]:
    """Return rates of one runner, after its contexts have filled."""
    runner.sample(num_timesteps=slots * (CONTEXT_LENGTH + 5), explore=False)

    def step() -> int:
        runner.sample(num_timesteps=10 * slots, explore=False)
        return 10 * slots

    return bench.rates(step)
