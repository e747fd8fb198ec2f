"""Prints how long a step of acting on images takes: each encoded once, and whole windows encoded anew.

    OMP_NUM_THREADS=1 python tests/benchmarks/acting_on_images.py [--context 30] [--slots 8] [--steps 60]

A Decision Transformer with the papers' convolutions and embeddings for Atari, 2 layers of 64, or 6 of 128 with
`--paper`, on random images of 84 x 84. Both see the same full windows, in turns; the median of each.
"""

from __future__ import annotations

import argparse
import statistics
import time

import gymnasium as gym
import numpy as np

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.types import Trajectory


def policy(context: int, *, paper: bool) -> SequenceModel:
    sizes = (
        {"embed_dim": 128, "num_layers": 6, "num_heads": 8} if paper else {"embed_dim": 64, "num_layers": 2}
    )
    frames, actions = np.zeros((1001, 84, 84), np.uint8), np.arange(1000) % 4
    episode = Trajectory(frames, actions, np.ones(1000, np.float32), terminated=True)
    info = DatasetInfo("images", gym.spaces.Box(0, 255, (84, 84), np.uint8), gym.spaces.Discrete(4))
    store = TrajectoryStore.from_trajectories([episode], info)
    chosen = ModelConfig.from_dict({"context_length": context, **sizes})
    return SequenceModel(PolicySpec.from_store(chosen, store, return_scale=None)).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--context", type=int, default=30)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--paper", action="store_true")
    options = parser.parse_args()
    model, slots = policy(options.context, paper=options.paper), options.slots
    windows = ContextBuffer.of(model.spec, slots, options.context)
    plans = {
        "encoded once": acting_plan(model, windows, "fp32"),
        "encoded anew": acting_plan(model, windows, "fp32", keeps=False),
    }
    rng = np.random.default_rng(0)
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for step in range(options.context + options.steps):
        frames = rng.integers(0, 256, (slots, 84, 84), np.uint8)
        windows.append(np.ones(slots), frames, np.full(slots, step))
        for name, plan in plans.items():
            begin = time.perf_counter()
            plan.outputs(None)
            if step >= options.context:
                taken[name].append(time.perf_counter() - begin)
        windows.set_actions(rng.integers(4, size=slots))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(
            f"{name}: {1e3 * median:6.2f} ms a step of {slots} slots, {slots / median:,.0f} steps/s; "
            f"{medians['encoded anew'] / median:.2f} times"
        )


if __name__ == "__main__":
    main()
