"""Starting or joining Ray, quietly, with room for what a config asks for."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["start_ray"]


def start_ray(config: Any = None, *, address: str | None = None) -> None:
    """Start Ray if this process has not joined one yet.

    A local Ray gets at least as many logical CPUs as the config asks for, so that a single run on a small
    machine shares its cores instead of waiting for ones that will never come.

    Args:
        config: a `SequenceConfig`, or None.
        address: of a running cluster; None for `RAY_ADDRESS`, else a local Ray.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    if address is not None or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        return
    needed = 1
    if config is not None:
        runners = config.num_env_runners + config.evaluation_num_env_runners
        per_learner = config.num_cpus_per_learner
        per_learner = 1 if per_learner == "auto" else per_learner
        needed += runners * config.num_cpus_per_env_runner + config.num_learners * per_learner
    ray.init(
        # Without it Ray would join whatever cluster happens to run on this machine, and refuse `num_cpus`.
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(needed)),
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
