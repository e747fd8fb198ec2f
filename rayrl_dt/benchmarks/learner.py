"""What RLlib's learner costs beside a bare torch loop."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.rllib_internals import local_learner
from rayrl_dt.benchmarks.measurement import Measurement, measured
from rayrl_dt.benchmarks.session import ray_running, running
from rayrl_dt.benchmarks.workload import BATCH_SIZE, CONTEXT_LENGTH, SEED, Bench
from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.seeding import derive_seed, numpy_generator

__all__ = ["measure"]


def measure(bench: Bench) -> list[Measurement]:
    """Measure RLlib's learner and a bare torch loop, in turns: same module, optimizer, clipping and sampler."""
    from ray.rllib.core.learner.training_data import TrainingData

    bench.say("learner: RLlib against bare torch")
    with ray_running(), running(bench.config()) as algorithm:
        iterators = algorithm.offline_data.iterators(0)
        bare = _BareLoop(algorithm, bench.store)

        def rllib(count: int) -> float:
            begin = time.perf_counter()
            algorithm.learner_group.update(
                training_data=TrainingData(data_iterators=iterators), num_iters=count
            )
            return count / (time.perf_counter() - begin)

        # Turns of half a second see the same load of the machine, and make the cost of a call to `update` small.
        for step in (rllib, bare):
            step(2)
        steps = max(3, round(bare(3) * min(0.5, bench.seconds / 16)))
        pairs: list[tuple[float, float]] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < bench.seconds or len(pairs) < 3:
            if len(pairs) % 2 == 0:
                first = rllib(steps)
                pairs.append((first, bare(steps)))
            else:
                second = bare(steps)
                pairs.append((rllib(steps), second))
        config = algorithm.config
        note = f"in turns of {steps} steps"
        return [
            measured("learner/rllib", [pair[0] for pair in pairs], "steps/s", config, note),
            measured("learner/bare_torch", [pair[1] for pair in pairs], "steps/s", config, note),
            measured(
                "learner/rllib_to_bare", [a / b for a, b in pairs], "ratio", config, f"{note}, by pairs"
            ),
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
