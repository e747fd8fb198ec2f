"""How collection scales with env runners, and what it saves to collect while learning.

    python tests/benchmarks/scaling.py sleeping          # an environment that waits 20 ms a step: not bound by the CPU
    python tests/benchmarks/scaling.py sleeping --runners 1,8x8    # 8 runners of 8 such environments, in processes
    python tests/benchmarks/scaling.py sleeping --sleep 0.2 --runners 1,64               # slow ones, by the dozen
    python tests/benchmarks/scaling.py sleeping --sleep 0 --width 20000 --runners 1,2    # MB/s that a driver bears
    python tests/benchmarks/scaling.py hopper            # one that is, in episodes of 1,000 steps
    python tests/benchmarks/scaling.py hopper --embed-dim 128 --layers 3 --context-length 20    # a larger policy
    python tests/benchmarks/scaling.py falling           # the same, ended by its falls: 50 steps and a call each
    python tests/benchmarks/scaling.py falling --fragment 1    # a call for each step: what a call costs the driver
    python tests/benchmarks/scaling.py turns             # async against sync: the same updates, the same samples
    python tests/benchmarks/scaling.py hung              # what one hung runner costs the others: waiting environments

Each figure is measured through `algorithm.train()` of asynchronous finetuning, after all runners have brought episodes.
What a call costs is the CPU time of the driver, all its threads, by calls: its learner takes one small update for 200
steps, or 2,000 on Hopper. Where the machine is shared with others, --repeats measures the counts in turn and reports
each one's median.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import ray

from rayrl_dt import OnlineDTConfig
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory

SLEEP = 0.02
EPISODE = 50
WIDTH = 4


class Sleeping(gym.Env[Any, Any]):
    """Waits at every step, as an environment does that asks another machine.

    Args:
        hang: a file; the first one that finds it takes it away and hangs.
        sleep: seconds that a step waits.
        width: numbers of an observation.
    """

    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, hang: str | None = None, *, sleep: float = SLEEP, width: int = WIDTH) -> None:
        self.hang = None if hang is None else Path(hang)
        self.sleep = sleep
        self.observation_space = gym.spaces.Box(-1, 1, (width,), np.float32)
        self.seen = self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.seen, {}

    def step(self, action: Any) -> Any:
        if self.sleep:
            time.sleep(self.sleep)
        self.time += 1
        if self.hang is not None and self.hang.exists():
            with contextlib.suppress(FileNotFoundError):  # another one was quicker
                self.hang.unlink()
                time.sleep(10**6)
        return self.seen, 1.0, False, self.time == EPISODE, {}


def record(env: gym.Env[Any, Any], name: str, folder: Path) -> str:
    """Saves twenty random episodes as a store; returns its source id."""
    rng, episodes = np.random.default_rng(0), []
    for number in range(20):
        observations, actions, rewards = [env.reset(seed=number)[0]], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            actions.append(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        episodes.append(
            Trajectory(np.stack(observations), np.stack(actions), np.array(rewards, np.float32), terminated)
        )
    info = DatasetInfo(name, env.observation_space, env.action_space)
    TrajectoryStore.from_trajectories(episodes, info).save(folder)
    return f"store:{folder}"


class Runners(NamedTuple):
    """How many there are, and how many environments each has, beyond one in processes of their own."""

    count: int
    slots: int = 1

    @classmethod
    def read(cls, text: str) -> Runners:
        """From "8" or "8x4"."""
        return cls(*(int(number) for number in text.split("x")))

    def __str__(self) -> str:
        return f"{self.count:3} runners" + (f" of {self.slots}" if self.slots > 1 else "")


def configure(
    data: str,
    env: str,
    runners: Runners,
    *,
    model: dict[str, int],
    env_config: dict[str, Any] | None = None,
    fragment: int = 200,
    **online: Any,
) -> OnlineDTConfig:
    config = OnlineDTConfig()
    config.offline_data(dataset=data)
    config.environment(env, env_config=env_config or {})
    config.rl_module(model_config={"max_episode_steps": 1000, **model})
    config.training(gradient_steps_per_iteration=1, train_batch_size_per_learner=16)
    config.evaluation(target_returns=[10.0])
    mode = "sync" if runners.slots == 1 else "async"
    config.env_runners(
        num_env_runners=runners.count,
        num_envs_per_env_runner=runners.slots,
        gym_env_vectorize_mode=mode,
        rollout_fragment_length=fragment,
    )
    config.online(pretrain_steps=0, exploration_target=10.0, **online)
    return config


class Rate(NamedTuple):
    """What runners bring, by second of the wall, and what a call and a second cost the driver."""

    steps: float
    calls: float
    driver_ms: float

    @property
    def driver_cores(self) -> float:
        """How many cores the driver keeps busy."""
        return self.calls * self.driver_ms / 1e3


def rate(
    data: str,
    env: str,
    runners: Runners,
    seconds: float,
    *,
    model: dict[str, int],
    per_round: int,
    env_config: dict[str, Any],
    fragment: int,
) -> Rate:
    """Measure with a learner that has next to nothing to do; steps are those of finished episodes."""
    endless = {"env_steps": 10**9, "env_steps_per_iteration": per_round, "updates_per_iteration": 1}
    algorithm = configure(
        data,
        env,
        runners,
        model=model,
        env_config=env_config,
        fragment=fragment,
        mode="async",
        max_rounds_ahead=1e9,
        **endless,
    ).build_algo()
    try:
        while algorithm.async_runners is None or len(algorithm.async_runners.streams) < runners.count:
            algorithm.train()
        begin, steps, calls = time.perf_counter(), algorithm.env_steps, algorithm.stream_calls
        busy = time.process_time()
        while time.perf_counter() - begin < seconds:
            algorithm.train()
        passed = time.perf_counter() - begin
        made = algorithm.stream_calls - calls
        return Rate(
            steps=(algorithm.env_steps - steps) / passed,
            calls=made / passed,
            driver_ms=1e3 * (time.process_time() - busy) / max(1, made),
        )
    finally:
        algorithm.stop()


def wall_time(
    data: str, env: str, runners: int, mode: str, updates: int, *, model: dict[str, int]
) -> tuple[float, int]:
    """Seconds for the same updates and samples, without the start; and the samples."""
    rounds, steps = 8, EPISODE * runners
    settings = {
        "env_steps": rounds * steps,
        "env_steps_per_iteration": steps,
        "updates_per_iteration": updates,
    }
    algorithm = configure(data, env, Runners(runners), model=model, mode=mode, **settings).build_algo()
    try:
        # The runners' processes are up once they have evaluated.
        algorithm.evaluate()
        begin = time.perf_counter()
        while not algorithm.done:
            algorithm.train()
        assert algorithm.gradient_steps == rounds * updates
        return time.perf_counter() - begin, algorithm.env_steps
    finally:
        algorithm.stop()


def hung(
    data: str, env: str, runners: int, seconds: float, *, model: dict[str, int], flag: Path
) -> tuple[float, float]:
    """Environment steps a second of all runners but one, before that one hangs and from then on."""
    settings = {"env_steps": 10**9, "updates_per_iteration": 1, "mode": "async"}
    algorithm = configure(
        data, env, Runners(runners), model=model, env_config={"hang": str(flag)}, **settings
    ).build_algo()

    def brought() -> dict[int, int]:
        steps = dict.fromkeys(range(1, runners + 1), 0)
        for totals in algorithm.async_runners.streams.values():
            steps[totals.runner] += totals.steps
        return steps

    def measure() -> dict[int, float]:
        before, begin = brought(), time.perf_counter()
        algorithm.stop_when(lambda: time.perf_counter() > begin + seconds)
        while time.perf_counter() < begin + seconds:
            algorithm.train()
        passed = time.perf_counter() - begin
        return {runner: (steps - before[runner]) / passed for runner, steps in brought().items()}

    try:
        while algorithm.async_runners is None or len(algorithm.async_runners.streams) < runners:
            algorithm.train()
        quiet = measure()
        flag.touch()
        found = measure()
        assert not flag.exists()
        silent = min(found, key=lambda runner: found[runner])
        return sum(quiet.values()) - quiet[silent], sum(found.values()) - found[silent]
    finally:
        algorithm.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("sleeping", "hopper", "falling", "turns", "hung"))
    parser.add_argument("--runners", help="how many, separated by commas; 8x4 for 8 of 4 environments each")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each count, in turn")
    parser.add_argument("--context-length", type=int, default=5, help="of the policy")
    parser.add_argument("--embed-dim", type=int, help="of the policy; 64 on Hopper, else 32")
    parser.add_argument("--layers", type=int, help="of the policy; 2 on Hopper, else 1")
    parser.add_argument(
        "--fragment", type=int, default=200, help="steps of a call (sleeping, hopper, falling)"
    )
    parser.add_argument("--sleep", type=float, default=SLEEP, help="seconds that a step waits (sleeping)")
    parser.add_argument("--width", type=int, default=WIDTH, help="numbers of an observation (sleeping)")
    parser.add_argument("--updates", type=int, default=100, help="of each round (turns)")
    arguments = parser.parse_args()
    hopper = arguments.what in ("hopper", "falling")
    usual = {"hung": "4,8"}.get(arguments.what, "1,2" if hopper else "1,2,4,8,16")
    counts = [Runners.read(count) for count in (arguments.runners or usual).split(",")]
    room = {"num_cpus": max(runners.count for runners in counts) + 16, "include_dashboard": False}
    ray.init(address="local", logging_level="ERROR", log_to_driver=False, **room)
    with tempfile.TemporaryDirectory() as folder:
        model = {
            "context_length": arguments.context_length,
            "embed_dim": arguments.embed_dim or (64 if hopper else 32),
            "num_layers": arguments.layers or (2 if hopper else 1),
        }
        if hopper:
            env, made = "Hopper-v5", gym.make("Hopper-v5")
        else:
            # Runners import this file by its name.
            env, made = f"{Path(__file__).stem}:Sleeping", Sleeping(sleep=0, width=arguments.width)
        data = record(made, env, Path(folder) / "store")
        if arguments.what == "turns":
            for mode in ("sync", "async"):
                seconds, steps = wall_time(data, env, 4, mode, arguments.updates, model=model)
                print(
                    f"{mode:5} {seconds:6.1f} s for {8 * arguments.updates} updates, {steps} steps",
                    flush=True,
                )
            return
        if arguments.what == "hung":
            flag = Path(folder) / "hang"
            for runners in counts * arguments.repeats:
                before, after = hung(data, env, runners.count, arguments.seconds, model=model, flag=flag)
                print(
                    f"{runners}, one hangs: the others take {before:.1f} env-steps/s before and "
                    f"{after:.1f} in the {arguments.seconds:g} s from then on, {after / before - 1:+.1%}",
                    flush=True,
                )
            return
        waiting = {"sleep": arguments.sleep, "width": arguments.width}
        config = {"hopper": {"terminate_when_unhealthy": False}, "sleeping": waiting}.get(arguments.what, {})
        step_mb = 4 * (sum(space.shape[0] for space in (made.observation_space, made.action_space)) + 1) / 1e6
        found: dict[Runners, list[float]] = {runners: [] for runners in counts}
        for runners in counts * arguments.repeats:
            measured = rate(
                data,
                env,
                runners,
                arguments.seconds,
                model=model,
                per_round=2_000 if hopper else 200,
                env_config=config,
                fragment=arguments.fragment,
            )
            found[runners].append(measured.steps)
            print(
                f"{runners} {measured.steps:9.1f} env-steps/s {measured.calls:7.1f} calls/s, each "
                f"{measured.driver_ms:.2f} ms of the driver; {step_mb * measured.steps:.1f} MB/s, the driver on "
                f"{measured.driver_cores:.2f} cores",
                flush=True,
            )
        environments = {runners: runners.count * runners.slots for runners in found}
        first = statistics.median(found[counts[0]]) / environments[counts[0]]
        for runners, rates in found.items():
            median = statistics.median(rates)
            share = median / environments[runners] / first
            print(f"{runners} {median:9.1f} env-steps/s  {share:.2f} of linear")


if __name__ == "__main__":
    main()
