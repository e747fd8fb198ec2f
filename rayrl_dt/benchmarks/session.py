"""Ray, and an algorithm, for as long as a measurement needs them; and pieces of work that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["Work", "ray_running", "running", "take_turns", "updates"]

Work = Callable[[int], float]
"""Takes as many steps, and returns how many it took per second."""
_MIN_TURNS = 3


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


def updates(algorithm: Any) -> Work:
    """Return the updates of an algorithm's learners, sampling included."""
    from ray.rllib.core.learner.training_data import TrainingData

    iterators = algorithm.offline_data.iterators(0)

    def work(count: int) -> float:
        begin = time.perf_counter()
        algorithm.learner_group.update(training_data=TrainingData(data_iterators=iterators), num_iters=count)
        return count / (time.perf_counter() - begin)

    return work


def take_turns(
    works: Mapping[str, Work], counts: Mapping[str, int], seconds: float
) -> list[dict[str, float]]:
    """Do each work for `seconds`, some steps (`counts`) at a time; return the rates of each turn."""
    turns: list[dict[str, float]] = []
    spent = dict.fromkeys(works, 0.0)
    while len(turns) < _MIN_TURNS or statistics.mean(spent.values()) < seconds:
        # Each turn begins with another work, so that none always follows the same one.
        names = list(works)
        first = len(turns) % len(names)
        turn = {}
        for name in (*names[first:], *names[:first]):
            turn[name] = works[name](counts[name])
            spent[name] += counts[name] / turn[name]
        turns.append(turn)
    return turns
