"""What RLlib's learner costs beside a bare torch loop."""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

import torch

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.rllib_internals import local_learner
from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import Work, ray_running, running, take_turns, updates
from rayrl_dt.benchmarks.workload import BATCH_SIZE, CONTEXT_LENGTH, SEED, Bench
from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.seeding import derive_seed, numpy_generator

__all__ = ["measure"]


def measure(bench: Bench) -> list[Measurement]:
    """Measure RLlib's learner and a bare torch loop, in turns: same module, optimizer, clipping and sampler."""
    bench.say("learner: RLlib against bare torch")
    with ray_running(), running(bench.config()) as algorithm:
        works = {
            "rllib": updates(algorithm),
            "bare_torch": _bare_loop(algorithm, bench.store),
        }
        for work in works.values():
            work(2)
        # Turns of half a second see the same load of the machine, and make the cost of a call to `update` small.
        steps = max(3, round(works["bare_torch"](3) * min(0.5, bench.seconds / 16)))
        turns = take_turns(works, dict.fromkeys(works, steps), bench.seconds / len(works))
        config, note = algorithm.config, f"in turns of {steps} steps"
        ratios = [turn["rllib"] / turn["bare_torch"] for turn in turns]
        return [
            *(
                measured(f"learner/{name}", [turn[name] for turn in turns], "steps/s", config, note)
                for name in works
            ),
            measured("learner/rllib_to_bare", ratios, "ratio", config, f"{note}, by pairs"),
        ]


def _bare_loop(algorithm: Any, store: TrajectoryStore) -> Work:
    """Return the training loop that one would write without RLlib, on a copy of the learner's network."""
    config = algorithm.config
    module = local_learner(algorithm.learner_group).sequence_module
    model = copy.deepcopy(module.model).train()
    device = model.head.weight.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    steps = itertools.count()

    def work(count: int) -> float:
        begin = time.perf_counter()
        loss = torch.zeros(())
        for step in itertools.islice(steps, count):
            rng = numpy_generator(SEED, "batch", 0, step)
            window = windows.sample(store, rng, BATCH_SIZE, CONTEXT_LENGTH).to_torch(device)
            model.reseed(derive_seed(SEED, "dropout", 0, step))
            with precision.autocast(device, module.precision):
                predicted = model(window)
            loss = losses.masked_mse(predicted, model.to_model_actions(window.actions), window.mask)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip, foreach=True)
            optimizer.step()
        float(loss.detach())  # waits for the device
        return count / (time.perf_counter() - begin)

    return work
