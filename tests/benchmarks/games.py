"""Prints how many steps of an Atari game a second takes, in each way to run several of them.

    python tests/benchmarks/games.py [--game Breakout] [--slots 8] [--seconds 10] [--policy RUN]

The plain loop is one game of Gymnasium's with `AtariPreprocessing` around it, stepped with random actions; the others
are what evaluations and runners step, without a policy. With `--policy` there are a plain loop that asks it, and the
evaluation of `--episodes` games at each of seven targets. Steps of a second of wall time, and of a second of the CPU.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing

from rayrl_dt import SequencePolicy
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.native_games import NATIVE
from rayrl_dt.evaluation.evaluate import evaluate_model
from rayrl_dt.evaluation.targets import policy_targets
from rayrl_dt.interop.bundle import Bundle


def plain_game(game: str) -> gym.Env[Any, Any]:
    gym.register_envs(ale_py)
    return AtariPreprocessing(gym.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0))


def plain(game: str) -> Any:
    env = plain_game(game)
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def step() -> int:
        *_, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))
        if terminated or truncated:
            env.reset()
        return 1

    return step


def plain_with_policy(game: str, run: str) -> Any:
    env, policy = plain_game(game), SequencePolicy.load(run)
    target = float(np.median(policy_targets(policy.spec, "dataset:7").targets))
    observation, _ = env.reset(seed=0)
    policy.reset(target)
    action = policy.act(observation)

    def step() -> int:
        nonlocal action
        observation, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
            policy.reset(target)
            action = policy.act(observation)
        else:
            action = policy.act(observation, float(reward))
        return 1

    return step


def evaluation(run: str, episodes: int, name: str) -> None:
    model = Bundle.open(run).model
    begin, cpu = time.perf_counter(), time.process_time()
    found = evaluate_model(model, policy_targets(model.spec, "dataset:7"), episodes_per_target=episodes)
    line(name, found.env_steps, time.perf_counter() - begin, time.process_time() - cpu)


def line(name: str, steps: float, seconds: float, cpu: float) -> None:
    print(f"{name:>32} {steps / seconds:>9.0f} {steps / cpu:>12.0f}")


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
    parser.add_argument("--policy", help="run or bundle of a policy of the game")
    parser.add_argument("--episodes", type=int, default=5, help="of the policy's evaluation, for each target")
    options = parser.parse_args()
    ways = {
        "plain loop, 1 game": plain(options.game),
        f"sync, {options.slots} games": vector(options.game, options.slots, "sync"),
        f"{NATIVE}, {options.slots} games": vector(options.game, options.slots, NATIVE),
    }
    if options.policy:
        ways["plain loop, 1 game, policy"] = plain_with_policy(options.game, options.policy)
    print(f"{'':>32} {'steps/s':>9} {'steps/CPU s':>12}")
    taken = {name: np.zeros(3) for name in ways}
    for _ in range(5):  # in turn, so that what else the machine does is the same for all
        for name, step in ways.items():
            begin, cpu, steps = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - begin < options.seconds / 5:
                steps += step()
            taken[name] += (steps, time.perf_counter() - begin, time.process_time() - cpu)
    for name, (steps, seconds, cpu) in taken.items():
        line(name, steps, seconds, cpu)
    if options.policy:
        evaluation(options.policy, options.episodes, f"evaluation, 7 x {options.episodes} games")


if __name__ == "__main__":
    main()
