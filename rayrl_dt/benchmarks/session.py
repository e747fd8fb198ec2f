"""Ray, and an algorithm, for as long as a measurement needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ray_running", "running"]


@contextmanager
def ray_running() -> Iterator[None]:
    """Use the Ray that runs on this machine already, else start a small one for as long as it is needed."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def running(config: Any) -> Iterator[Any]:
    """Build the algorithm of a config, and stop it in the end."""
    algorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()
