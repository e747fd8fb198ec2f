"""What a critic costs: updates of TD3+ODT beside those of ODT and deterministic ODT, at equal sizes.

They take turns, so that whatever else the machine does hits all of them alike. Every update is one of the online
phase, on the same windows: the critics', the policy's and the targets' (Yan et al. 2024 report 20% more time than ODT).
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import ray_running, running
from rayrl_dt.benchmarks.workload import BATCH_SIZE, ENV, SEED, Bench

__all__ = ["METHODS", "SIZES", "measure"]

SIZES: dict[str, dict[str, Any]] = {
    "64x2": {"embed_dim": 64, "num_layers": 2, "context_length": 5},
    "128x3": {"embed_dim": 128, "num_layers": 3, "context_length": 20},
}
"""The CPU preset of online finetuning, and the size of the other benchmarks."""
METHODS: dict[str, dict[str, Any]] = {
    "odt": {"rl_gradient": "none", "head": "gaussian"},
    "odt_deterministic": {"rl_gradient": "none", "head": "deterministic"},
    "td3_odt": {"rl_gradient": "td3", "head": "deterministic"},
    # TD3's own interval, and the paper's on MuJoCo: the policy and the targets move at every other update.
    "td3_odt_interval_2": {"rl_gradient": "td3", "head": "deterministic", "actor_interval": 2},
}
_REFERENCE = "odt"
_TURN_SECONDS = 0.25
_MIN_TURNS = 3


def measure(bench: Bench) -> list[Measurement]:
    """Measure updates per second of each method, sampling included, and what each costs relative to ODT."""
    found = []
    with ray_running():
        for size, model in SIZES.items():
            bench.say(f"online: {size}")
            found += _compare(bench, size, model)
    return found


def _compare(bench: Bench, size: str, model: dict[str, Any]) -> list[Measurement]:
    with ExitStack() as stack:
        algorithms = {
            name: stack.enter_context(running(_config(bench, model, **method)))
            for name, method in METHODS.items()
        }
        turns = _take_turns(algorithms, bench.seconds)
        config = next(iter(algorithms.values())).config
    context = model["context_length"]
    note = f"width and layers {size}, context {context}, {BATCH_SIZE} windows, in turns"
    rates = {name: [turn[name] for turn in turns] for name in METHODS}
    found = [
        measured(f"online/{size}/{name}", values, "updates/s", config, note) for name, values in rates.items()
    ]
    for name in METHODS:
        if name != _REFERENCE:
            costs = [turn[_REFERENCE] / turn[name] for turn in turns]
            what = f"online/{size}/cost_{name}_to_{_REFERENCE}"
            found.append(measured(what, costs, "ratio", config, f"{note}, by turns"))
    return found


def _config(bench: Bench, model: dict[str, Any], *, head: str, **online: Any) -> Any:
    """Return a config whose every update is one of finetuning."""
    from rayrl_dt.algorithms.online.algorithm import OnlineDTConfig

    config = OnlineDTConfig()
    config.environment(ENV)
    config.offline_data(dataset=f"store:{bench.folder}")
    config.rl_module(model_config={**bench.model, **model, "head": head})
    config.training(train_batch_size_per_learner=BATCH_SIZE)
    config.online(pretrain_steps=0, **online)
    config.debugging(seed=SEED)
    return config


def _take_turns(algorithms: dict[str, Any], seconds: float) -> list[dict[str, float]]:
    """Run every method for `seconds`, by turns; return the updates per second of each turn."""
    iterators = {name: algorithm.offline_data.iterators(0) for name, algorithm in algorithms.items()}
    counts = {
        name: max(1, round(_rate(algorithms[name], iterators[name], 5) * _turn(seconds)))
        for name in algorithms
    }
    turns: list[dict[str, float]] = []
    spent = dict.fromkeys(algorithms, 0.0)
    while len(turns) < _MIN_TURNS or statistics.mean(spent.values()) < seconds:
        # Each turn begins with another method, so that none always follows the same one.
        names = list(algorithms)
        first = len(turns) % len(names)
        turn = {}
        for name in (*names[first:], *names[:first]):
            turn[name] = _rate(algorithms[name], iterators[name], counts[name])
            spent[name] += counts[name] / turn[name]
        turns.append(turn)
    return turns


def _turn(seconds: float) -> float:
    return min(_TURN_SECONDS, seconds / 16)


def _rate(algorithm: Any, iterators: Any, count: int) -> float:
    """Take `count` updates; return updates per second."""
    from ray.rllib.core.learner.training_data import TrainingData

    begin = time.perf_counter()
    algorithm.learner_group.update(training_data=TrainingData(data_iterators=iterators), num_iters=count)
    return count / (time.perf_counter() - begin)
