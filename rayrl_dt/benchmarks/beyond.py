"""What following a return better costs beside RADT: training steps and acting steps, and many returns beside one.

All take turns, so that whatever else the machine does hits them alike. Training steps are updates of a learner,
sampling included, those of q_align with the order counted and a critic trained in each. Acting steps choose actions in
some environments whose observations are drawn, with contexts full.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import Work, ray_running, running, take_turns, updates
from rayrl_dt.benchmarks.workload import BATCH_SIZE, SEED, Bench
from rayrl_dt.critics.training import new_critic
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.policy.double_check import DoubleCheck, DoubleCheckRefiner
from rayrl_dt.seeding import numpy_generator, seeded_weights

__all__ = ["RETURNS", "measure"]

RETURNS = 32
"""Returns that are asked for at once."""
_SLOTS = 8
_REFERENCE = "radt"
_TURN_SECONDS = 0.25
_CRITIC_WIDTH = 256
TRAINING: dict[str, dict[str, Any]] = {
    "radt": {"backbone": "radt"},
    "decoupled": {"backbone": "decoupled"},
    "radt_q_align": {"backbone": "radt", "objective": "q_align"},
    "decoupled_q_align": {"backbone": "decoupled", "objective": "q_align"},
}
ACTING: dict[str, dict[str, Any]] = {
    "radt": {"backbone": "radt"},
    "decoupled": {"backbone": "decoupled"},
    "decoupled_block": {"backbone": "decoupled", "modulation": "block"},
    "decoupled_guided": {"backbone": "decoupled", "return_dropout": 0.2, "guidance": 2.0},
    "radt_double_check": {"backbone": "radt", "returns": RETURNS},
    "decoupled_double_check": {"backbone": "decoupled", "returns": RETURNS},
}


def measure(bench: Bench) -> list[Measurement]:
    """Measure steps per second of each, and what each costs: beside RADT, and many returns beside one."""
    bench.say("beyond: training steps")
    with ray_running(), ExitStack() as stack:
        algorithms = [stack.enter_context(running(_config(bench, **row))) for row in TRAINING.values()]
        works = dict(zip(TRAINING, map(updates, algorithms), strict=True))
        found = _compare(
            bench, "train", works, [(name, _REFERENCE) for name in TRAINING], algorithms[0].config
        )
    bench.say("beyond: acting steps")
    acting = {name: _acting(bench, **row) for name, row in ACTING.items()}
    found += _compare(bench, "act", acting, [(name, _REFERENCE) for name in ACTING], None)
    bench.say("beyond: many returns")
    asking = {
        f"{backbone}_{count}": _asking(bench, backbone, count)
        for backbone in ("radt", "decoupled")
        for count in (1, RETURNS)
    }
    pairs = [(f"{backbone}_{RETURNS}", f"{backbone}_1") for backbone in ("radt", "decoupled")]
    return found + _compare(bench, "ask", asking, pairs, None)


def _compare(
    bench: Bench, what: str, works: Mapping[str, Work], pairs: Sequence[tuple[str, str]], config: Any
) -> list[Measurement]:
    """Return the rates of works, and of each pair what the one costs beside the other."""
    turn_seconds = min(_TURN_SECONDS, bench.seconds / 16)
    counts = {name: max(1, round(work(3) * turn_seconds)) for name, work in works.items()}
    turns = take_turns(works, counts, bench.seconds)
    note = {
        "train": f"{BATCH_SIZE} windows, sampling included, in turns",
        "act": f"{_SLOTS} slots, contexts full, fp32, {RETURNS} returns where checked, in turns",
        "ask": f"{_SLOTS} slots, contexts full, fp32, the plan alone, in turns",
    }[what]
    unit = "updates/s" if what == "train" else "steps/s"
    found = [
        measured(f"beyond/{what}/{name}", [turn[name] for turn in turns], unit, config, note)
        for name in works
    ]
    for name, reference in pairs:
        if name != reference:
            costs = [turn[reference] / turn[name] for turn in turns]
            label = f"beyond/{what}/cost_{name}_to_{reference}"
            found.append(measured(label, costs, "ratio", config, f"{note}, by turns"))
    return found


def _config(bench: Bench, *, backbone: str, **training: Any) -> Any:
    config = bench.config()
    config.rl_module(model_config={**bench.model, "backbone": backbone})
    return config.training(**training, **({"align_start": 0.0} if training else {}))


def _model(bench: Bench, **config: Any) -> SequenceModel:
    spec = PolicySpec.from_store(
        ModelConfig.from_dict({**bench.model, **config}), bench.store, return_scale=None
    )
    with seeded_weights(SEED, "init"):
        return SequenceModel(spec).eval()


def _acting(bench: Bench, *, guidance: float = 1.0, returns: int = 1, **config: Any) -> Work:
    """Return the acting of a new policy, guided, or checked with as many returns."""
    model = _model(bench, **config)
    spec, steps = model.spec, model.spec.model.context_length
    actor = VectorActor(model, _SLOTS, guidance=guidance)
    if returns > 1:
        critic = new_critic(spec, hidden=_CRITIC_WIDTH, seed=SEED)
        actor.refiner = DoubleCheckRefiner(DoubleCheck(n=returns, mode="max"), critic, spec, None)
    rng = numpy_generator(SEED, "bench-acting")
    shape = (steps, _SLOTS, *(spec.observation_space.shape or ()))
    observations = rng.standard_normal(shape, np.float32)
    rewards, targets, done = np.zeros(_SLOTS), np.full(_SLOTS, spec.data_returns["p95"]), itertools.count()

    def work(count: int) -> float:
        begin = time.perf_counter()
        for step in itertools.islice(done, count):
            actor.act(observations[step % steps], rewards, np.full(_SLOTS, step == 0), targets)
        return count / (time.perf_counter() - begin)

    work(steps + 1)  # until contexts are full
    return work


def _asking(bench: Bench, backbone: str, returns: int) -> Work:
    """Return what a plan does in a step where it is asked for as many returns."""
    model = _model(bench, backbone=backbone)
    spec, steps = model.spec, model.spec.model.context_length
    context = ContextBuffer.of(spec, _SLOTS, steps)
    plan, rng = acting_plan(model, context, "fp32"), numpy_generator(SEED, "bench-asking")
    shape = (_SLOTS, *(spec.observation_space.shape or ()))
    observations, actions = (
        rng.standard_normal(shape, np.float32),
        rng.uniform(-1, 1, (_SLOTS, *spec.head.shape)),
    )
    shifts = torch.linspace(-1.0, 1.0, returns)[:, None].expand(-1, _SLOTS)
    done = itertools.count()

    def work(count: int) -> float:
        begin = time.perf_counter()
        for step in itertools.islice(done, count):
            context.append(np.full(_SLOTS, 9.0), observations, np.full(_SLOTS, step % 500))
            plan.outputs_for(shifts, None)
            context.set_actions(actions)
        return count / (time.perf_counter() - begin)

    work(steps + 1)
    return work
