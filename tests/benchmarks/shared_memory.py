"""Shows that two Tune trials with two learners each hold one copy of the data on a node.

    python tests/benchmarks/shared_memory.py [--steps 5000000]
    python tests/benchmarks/shared_memory.py --frames [--steps 500000]

The data are steps of Hopper's size, or images of Atari's (84, 84), which a policy sees in stacks of four. Prints how
large the store is beside its observations alone, and then, for every process that maps the data, how much of the
data's files is resident in it, and what it is charged for them when shared pages are divided among their users (Pss).
One copy in total means that the Pss column sums to about the size of the data, however many processes there are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import ray
from ray import tune

from rayrl_dt import DT, DTConfig
from rayrl_dt.data.store import DatasetInfo
from rayrl_dt.data.writer import StoreWriter
from rayrl_dt.types import Trajectory


def write_vectors(folder: Path, steps: int) -> None:
    rng = np.random.default_rng(0)
    space = gym.spaces.Box(-np.inf, np.inf, (11,), np.float32)
    info = DatasetInfo(str(folder), space, gym.spaces.Box(-1, 1, (3,), np.float32))
    with StoreWriter(folder, info) as writer:
        for _ in range(steps // 1000):
            observations = rng.standard_normal((1001, 11), dtype=np.float32)
            actions = rng.uniform(-1, 1, (1000, 3)).astype(np.float32)
            writer.append(Trajectory(observations, actions, rng.random(1000, dtype=np.float32), True))


def write_frames(folder: Path, steps: int) -> None:
    rng = np.random.default_rng(0)
    space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    with StoreWriter(folder, DatasetInfo(str(folder), space, gym.spaces.Discrete(4))) as writer:
        for _ in range(steps // 1000):
            frames = rng.integers(0, 256, (1001, 84, 84), np.uint8)
            rewards = rng.random(1000, dtype=np.float32)
            writer.append(Trajectory(frames, rng.integers(4, size=1000), rewards, True))


def mapped(pid: int, folder: Path) -> tuple[float, float]:
    """Resident and proportional megabytes of the files of `folder` in a process."""
    rss = pss = 0
    inside = False
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    for line in lines:
        word, *rest = line.split()
        if not word.endswith(":"):
            inside = str(folder) in line
        elif inside and word == "Rss:":
            rss += int(rest[0])
        elif inside and word == "Pss:":
            pss += int(rest[0])
    return rss / 1024, pss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--frames", action="store_true")
    options = parser.parse_args()
    # Of batches and windows: convolutions take a thousand times as long as a vector's linear map.
    write, steps, batch, context = (
        (write_frames, 500_000, 64, 10) if options.frames else (write_vectors, 5_000_000, 2048, 20)
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        write(folder, options.steps or steps)
        raw = (folder / "observations.npy").stat().st_size
        size = sum(file.stat().st_size for file in folder.glob("*.npy")) / 2**20
        ray.init(num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        config = (
            DTConfig()
            .offline_data(dataset=f"store:{folder}")
            .rl_module(model_config={"context_length": context, "embed_dim": 8, "num_layers": 1})
            .training(
                gradient_steps=40,
                gradient_steps_per_iteration=20,
                train_batch_size_per_learner=batch,
                lr=tune.grid_search([1e-3, 1e-4]),
            )
            .learners(num_learners=2, num_cpus_per_learner=1)
        )
        most: dict[int, tuple[float, float, str]] = {}
        total = 0.0
        running = threading.Event()
        running.set()

        def watch() -> None:
            nonlocal most, total
            while running.is_set():
                found = {}
                for entry in Path("/proc").iterdir():
                    if entry.name.isdigit() and int(entry.name) != os.getpid():
                        rss, pss = mapped(int(entry.name), folder)
                        if rss > 1:
                            title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
                            found[int(entry.name)] = (rss, pss, title)
                if sum(rss for rss, _, _ in found.values()) > sum(rss for rss, _, _ in most.values()):
                    most, total = found, sum(pss for _, pss, _ in found.values())
                time.sleep(0.5)

        watcher = threading.Thread(target=watch)
        watcher.start()
        results = tune.Tuner(
            DT, param_space=config, run_config=tune.RunConfig(storage_path=scratch, verbose=0)
        ).fit()
        running.clear()
        watcher.join()
        assert not results.errors, results.errors
        print(f"data {size:.0f} MiB, {size * 2**20 / raw:.3f} of its observations; trials {len(results)}")
        print(f"{'pid':>8} {'resident MiB':>13} {'charged MiB':>12}  process")
        for pid, (rss, pss, title) in sorted(most.items()):
            print(f"{pid:>8} {rss:>13.0f} {pss:>12.0f}  {title}")
        print(f"{'sum':>8} {sum(r for r, _, _ in most.values()):>13.0f} {total:>12.0f}")


if __name__ == "__main__":
    main()
