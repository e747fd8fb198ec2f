"""Prints how many steps of an Atari game a second takes, in each way to run several of them.

    python tests/benchmarks/games.py [--game Breakout] [--slots 8] [--seconds 10]

The plain loop is one game of Gymnasium's with `AtariPreprocessing` around it, stepped with random actions; the others
are what evaluations and runners step, without a policy. Steps of a second of wall time, and of a second of the CPU.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing

from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.native_games import NATIVE


def plain(game: str) -> Any:
    gym.register_envs(ale_py)
    env = AtariPreprocessing(gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0))
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def step() -> int:
        *_, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))
        if terminated or truncated:
            env.reset()
        return 1

    return step


def vector(game: str, slots: int, mode: Any) -> Any:
    games = RecordedEnv.named(f"ALE/{game}-v5").make_vector(slots, mode=mode)
    rng = np.random.default_rng(0)
    games.reset(seed=0)

    def step() -> int:
        games.step(rng.integers(games.single_action_space.n, size=slots))
        return slots

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    ways = {
        "plain loop, 1 game": plain(options.game),
        f"sync, {options.slots} games": vector(options.game, options.slots, "sync"),
        f"{NATIVE}, {options.slots} games": vector(options.game, options.slots, NATIVE),
    }
    print(f"{'':>32} {'steps/s':>9} {'steps/CPU s':>12}")
    taken = {name: np.zeros(3) for name in ways}
    for _ in range(5):  # in turn, so that what else the machine does is the same for all
        for name, step in ways.items():
            begin, cpu, steps = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - begin < options.seconds / 5:
                steps += step()
            taken[name] += (steps, time.perf_counter() - begin, time.process_time() - cpu)
    for name, (steps, seconds, cpu) in taken.items():
        print(f"{name:>32} {steps / seconds:>9.0f} {steps / cpu:>12.0f}")


if __name__ == "__main__":
    main()
