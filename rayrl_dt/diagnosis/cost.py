"""What policies cost: parameters, the time of a step of acting, the time of a training step."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.precision import autocast, resolve
from rayrl_dt.seeding import numpy_generator

__all__ = ["Cost", "measure"]

SLOTS = (1, 32)
"""In how many environments a policy acts at once."""


@dataclass(frozen=True)
class Cost:
    """The cost of one policy. Times are medians over repeats, in milliseconds.

    Attributes:
        label: which policy.
        parameters: number of trainable parameters.
        acting_ms: of the next actions in 1 and in 32 environments with full windows, the environments left out.
        training_ms: of forward, backward and AdamW on one batch of windows.
        batch_size: windows of that batch.
        context_length: K, steps of a window.
        precision: "fp32" or "bf16".
        device: where it was measured.
        threads: torch threads.
    """

    label: str
    parameters: int
    acting_ms: dict[int, float]
    training_ms: float
    batch_size: int
    context_length: int
    precision: str
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {**asdict(self), "acting_ms": {str(n): value for n, value in self.acting_ms.items()}}


def measure(
    models: Sequence[tuple[str, SequenceModel]],
    store: TrajectoryStore,
    *,
    batch_size: int = 64,
    precision: str = "auto",
    repeats: int = 7,
    seconds: float = 0.1,
    seed: int = 0,
) -> tuple[Cost, ...]:
    """Measure policies on windows of the same data, in the order given.

    The repeats take turns, so that all policies meet the same load of the machine. The models are left as they are:
    training steps are taken by copies.

    Args:
        models: (label, network) each; put into eval mode.
        store: data that fits the networks.
        batch_size: windows of a training step.
        precision: "fp32", "bf16" or "auto".
        repeats: of which the median is taken.
        seconds: wall time of one repeat of one measurement; a call that takes longer is made once.
        seed: of the windows.
    """
    jobs: dict[tuple[int, str], Callable[[], object]] = {}
    chosen: list[str] = []
    for index, (_, model) in enumerate(models):
        chosen.append(resolve(precision, model.head.weight.device))
        for slots in SLOTS:
            jobs[index, f"acting {slots}"] = _acting(model, store, slots, chosen[-1], seed)
        jobs[index, "training"] = _training(model, store, batch_size, chosen[-1], seed)
    milliseconds = _take_turns(jobs, repeats=repeats, seconds=seconds)
    return tuple(
        Cost(
            label=label,
            parameters=sum(value.numel() for value in model.parameters() if value.requires_grad),
            acting_ms={slots: milliseconds[index, f"acting {slots}"] for slots in SLOTS},
            training_ms=milliseconds[index, "training"],
            batch_size=batch_size,
            context_length=model.spec.model.context_length,
            precision=chosen[index],
            device=str(model.head.weight.device),
            threads=torch.get_num_threads(),
        )
        for index, (label, model) in enumerate(models)
    )


def _acting(
    model: SequenceModel, store: TrajectoryStore, slots: int, precision: str, seed: int
) -> Callable[[], object]:
    """Return a call that chooses the next actions in `slots` environments, whose observations come from the data."""
    steps = model.spec.model.context_length
    rng = numpy_generator(seed, "cost/acting", slots)
    observations = store.observations[rng.integers(store.num_steps, size=(steps, slots))]
    rewards, targets = np.zeros(slots), np.full(slots, store.episode_returns.mean())
    actor = VectorActor(model, slots, precision=precision)
    device = model.head.weight.device
    step = 0

    def call() -> None:
        nonlocal step
        starting = np.full(slots, step == 0)
        actor.act(observations[step % steps], rewards, starting, targets)
        step += 1
        _wait(device)

    # From here on the windows are full.
    for _ in range(steps):
        call()
    return call


def _training(
    model: SequenceModel, store: TrajectoryStore, batch_size: int, precision: str, seed: int
) -> Callable[[], object]:
    """Return a call that takes one gradient step, the loss as in training; for a copy of the model."""
    trained = copy.deepcopy(model).train()
    device = trained.head.weight.device
    rng = numpy_generator(seed, "cost/training")
    chosen = model.spec.model
    drawn = windows.sample(store, rng, batch_size, chosen.context_length, frame_stack=chosen.frame_stack)
    window = drawn.to_torch(device)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5, fused=True)

    def call() -> None:
        with autocast(device, precision):
            predicted = trained(window)
        loss = imitation_loss(trained, predicted, window)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        _wait(device)

    return call


def _take_turns(
    jobs: Mapping[tuple[int, str], Callable[[], object]], *, repeats: int, seconds: float
) -> dict[tuple[int, str], float]:
    """Return the median time of a call of each job, in milliseconds, the first calls not counted."""
    for call in jobs.values():
        call()
    times: dict[tuple[int, str], list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, call in jobs.items():
            calls, begin = 0, time.perf_counter()
            while (passed := time.perf_counter() - begin) < seconds or calls == 0:
                call()
                calls += 1
            times[name].append(1000 * passed / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    """Wait for what an accelerator still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
