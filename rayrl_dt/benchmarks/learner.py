"""What RLlib's learner costs beside a bare torch loop."""

from __future__ import annotations

import copy
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
        works: dict[str, Work] = {
            "rllib": updates(algorithm),
            "bare_torch": _BareLoop(algorithm, bench.store),
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


class _BareLoop:
    """The training loop that one would write without RLlib, on a copy of the learner's network."""

    def __init__(self, algorithm: Any, store: TrajectoryStore) -> None:
        self.config = algorithm.config
        module = local_learner(algorithm.learner_group).sequence_module
        self.store = store
        self.precision = module.precision
        self.model = copy.deepcopy(module.model).train()
        self.device = self.model.head.weight.device
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            fused=self.device.type == "cpu",
        )
        self.taken = 0

    def __call__(self, count: int) -> float:
        """Take `count` gradient steps; return steps per second."""
        begin = time.perf_counter()
        loss = torch.zeros(())
        for _ in range(count):
            rng = numpy_generator(SEED, "batch", 0, self.taken)
            window = windows.sample(self.store, rng, BATCH_SIZE, CONTEXT_LENGTH).to_torch(self.device)
            self.model.reseed(derive_seed(SEED, "dropout", 0, self.taken))
            with precision.autocast(self.device, self.precision):
                predicted = self.model(window)
            loss = losses.masked_mse(predicted, self.model.to_model_actions(window.actions), window.mask)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip, foreach=True)
            self.optimizer.step()
            self.taken += 1
        float(loss.detach())  # waits for the device
        return count / (time.perf_counter() - begin)
