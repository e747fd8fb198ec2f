"""What a critic costs: updates of TD3+ODT beside those of ODT and deterministic ODT, at equal sizes.

They take turns, so that whatever else the machine does hits all of them alike. Every update is one of the online
phase, on the same windows: the critics', the policy's and the targets' (Yan et al. 2024 report 20% more time than ODT).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import ray_running, running, take_turns, updates
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
        works = {name: updates(algorithm) for name, algorithm in algorithms.items()}
        turn_seconds = min(_TURN_SECONDS, bench.seconds / 16)
        counts = {name: max(1, round(work(5) * turn_seconds)) for name, work in works.items()}
        turns = take_turns(works, counts, bench.seconds)
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
