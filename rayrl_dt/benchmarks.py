"""How fast the parts are on this machine: sampling, gradient steps, RLlib's overhead, rollouts.

One fixed piece of work, so that figures compare between machines, versions and libraries: Hopper-sized data (11
observations, 3 actions, 100 episodes of 500 steps made from a seed) and a Decision Transformer (or another backbone)
of 3 layers, width 128, 1 head, context 20, dropout 0.1, on batches of 64 windows. Nothing is downloaded or kept.
"""

from __future__ import annotations

import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rayrl_dt import losses, precision
from rayrl_dt.data import windows
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.models.spec import BACKBONES
from rayrl_dt.seeding import derive_seed, numpy_generator
from rayrl_dt.types import Trajectory

__all__ = ["KINDS", "Measurement", "Progress", "run"]

KINDS = ("train", "rollout", "sampler", "learner")
BATCH_SIZE = 64
CONTEXT_LENGTH = 20
OBSERVATION_SIZE = 11
ACTION_SIZE = 3
EPISODES = 100
EPISODE_STEPS = 500
ROLLOUT_SLOTS = (1, 8, 32)
ENV = "Hopper-v5"
_SEED = 0
_REPEATS = 5
_MODEL: dict[str, Any] = {
    "context_length": CONTEXT_LENGTH,
    "embed_dim": 128,
    "num_layers": 3,
    "num_heads": 1,
    "dropout": 0.1,
    "max_episode_steps": 1000,
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
        name: what was measured, as `part/quantity`.
        value: the median over the repeats.
        unit: of the value.
        detail: the spread, and what the figure depends on (threads, precision, CPU, torch version).
    """

    name: str
    value: float
    unit: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return asdict(self)


def run(
    which: str,
    *,
    backbone: str = "dt",
    seconds: float = 8.0,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measures one part of the package, or all of them.

    Args:
        which: one of `KINDS`, or "all".
        backbone: of the model that is trained and rolled out.
        seconds: wall time of each figure, without set-up and warm-up.
        threads: torch threads while measuring; the former number is restored.
        progress: told in a few words what is being measured.

    Raises:
        UserError: `which` is unknown, or a number is not positive.
    """
    kinds = KINDS if which == "all" else (which,)
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"unknown benchmark {which!r}.{suggest(which, (*KINDS, 'all'))}")
    if backbone not in BACKBONES:
        raise UserError(f"unknown backbone {backbone!r}.{suggest(backbone, BACKBONES)}")
    if not seconds > 0:
        raise UserError(f"seconds is {seconds}; it must be a positive number")
    if threads < 1:
        raise UserError(f"threads is {threads}; it must be at least 1")
    measure = {"train": _train, "rollout": _rollout, "sampler": _sampler, "learner": _learner}
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="rayrl_dt-bench-") as folder:
            bench = _Bench(_make_store(), Path(folder) / "store", backbone, seconds, progress)
            bench.store.save(bench.folder)
            return [measurement for kind in kinds for measurement in measure[kind](bench)]
    finally:
        torch.set_num_threads(threads_before)


@dataclass(frozen=True)
class _Bench:
    """What all measurements share.

    Attributes:
        store: the data, in memory.
        folder: the same data, on disk.
        backbone: of the model.
        seconds: wall time per figure.
        progress: told what is being measured.
    """

    store: TrajectoryStore
    folder: Path
    backbone: str
    seconds: float
    progress: Progress | None

    def say(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what)

    def config(self) -> Any:
        """Returns a config on the data, with no end to its training."""
        from rayrl_dt.algorithms.dt import DTConfig

        config = DTConfig()
        config.offline_data(dataset=f"store:{self.folder}")
        config.rl_module(model_config={**_MODEL, "backbone": self.backbone})
        config.training(
            gradient_steps=10**9, gradient_steps_per_iteration=10**9, train_batch_size_per_learner=BATCH_SIZE
        )
        config.debugging(seed=_SEED)
        return config

    def rates(self, step: Callable[[], int]) -> list[float]:
        """Calls `step`, which returns how much it has done, for `seconds`; returns the rate of each repeat."""
        found = []
        for _ in range(_REPEATS):
            done = 0
            begin = time.perf_counter()
            while (passed := time.perf_counter() - begin) < self.seconds / _REPEATS or done == 0:
                done += step()
            found.append(done / passed)
        return found


def _make_store() -> TrajectoryStore:
    """Random data in Hopper's shapes."""
    rng = numpy_generator(_SEED, "bench-data")
    info = DatasetInfo(
        source="bench",
        observation_space=gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float64),
        action_space=gym.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32),
    )
    episodes = (
        Trajectory(
            observations=rng.standard_normal((EPISODE_STEPS + 1, OBSERVATION_SIZE), np.float32),
            actions=rng.uniform(-1, 1, (EPISODE_STEPS, ACTION_SIZE)).astype(np.float32),
            rewards=rng.uniform(0, 3, EPISODE_STEPS).astype(np.float32),
            terminated=True,
        )
        for _ in range(EPISODES)
    )
    return TrajectoryStore.from_trajectories(episodes, info)


def _train(bench: _Bench) -> list[Measurement]:
    """Gradient steps per second of `algo.train()` with a local learner, sampling included."""
    bench.say("train: gradient steps")
    with _ray(), _algorithm(bench) as algorithm:
        _iterate(algorithm, min(1.0, bench.seconds))
        rates = [_iterate(algorithm, bench.seconds / _REPEATS) for _ in range(_REPEATS)]
        return [
            _measurement(
                "train/gradient_steps", rates, "steps/s", algorithm.config, "algo.train(), sampling included"
            )
        ]


def _iterate(algorithm: Any, seconds: float) -> float:
    """Runs one iteration that ends after about `seconds`; returns its gradient steps per second."""
    taken = algorithm.gradient_steps
    begin = time.perf_counter()
    algorithm.observe_steps(lambda step, loss: time.perf_counter() - begin < seconds)
    algorithm.train()
    return float((algorithm.gradient_steps - taken) / (time.perf_counter() - begin))


def _learner(bench: _Bench) -> list[Measurement]:
    """RLlib's learner against a bare torch loop of the same module, optimiser, clipping and sampler, in turns."""
    from ray.rllib.core.learner.training_data import TrainingData

    bench.say("learner: RLlib against bare torch")
    with _ray(), _algorithm(bench) as algorithm:
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
            _measurement("learner/rllib", [pair[0] for pair in pairs], "steps/s", config, note),
            _measurement("learner/bare_torch", [pair[1] for pair in pairs], "steps/s", config, note),
            _measurement(
                "learner/rllib_to_bare", [a / b for a, b in pairs], "ratio", config, f"{note}, by pairs"
            ),
        ]


class _BareLoop:
    """The training loop that one would write without RLlib, on a copy of the learner's network."""

    def __init__(self, algorithm: Any, store: TrajectoryStore) -> None:
        self.config = algorithm.config
        module = algorithm.learner_group._learner.sequence_module
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
        """Takes `count` gradient steps; returns steps per second."""
        begin = time.perf_counter()
        loss = torch.zeros(())
        for _ in range(count):
            rng = numpy_generator(_SEED, "batch", 0, self.taken)
            window = windows.sample(self.store, rng, BATCH_SIZE, CONTEXT_LENGTH).to_torch(self.device)
            self.model.reseed(derive_seed(_SEED, "dropout", 0, self.taken))
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


def _rollout(bench: _Bench) -> list[Measurement]:
    """Environment steps per second of the env runner in Hopper, which never falls: contexts are full."""
    from rayrl_dt.algorithms.env_runner import SequenceEnvRunner

    found = []
    with _ray():
        for slots in ROLLOUT_SLOTS:
            bench.say(f"rollout: {slots} environment{'s' if slots > 1 else ''}")
            config = bench.config()
            config.environment(ENV, env_config={"terminate_when_unhealthy": False})
            config.env_runners(num_envs_per_env_runner=slots)
            config.resolve(bench.store)
            runner = SequenceEnvRunner(config=config)
            try:
                rates = _rollout_rates(bench, runner, slots)
            finally:
                runner.stop()
            note = f"{ENV}, one process, {slots} slots, contexts full"
            found.append(_measurement(f"rollout/env_steps_{slots}", rates, "env-steps/s", config, note))
    return found


def _rollout_rates(bench: _Bench, runner: Any, slots: int) -> list[float]:
    """Rates of one runner, after its contexts have filled."""
    runner.sample(num_timesteps=slots * (CONTEXT_LENGTH + 5), explore=False)

    def step() -> int:
        runner.sample(num_timesteps=10 * slots, explore=False)
        return 10 * slots

    return bench.rates(step)


def _sampler(bench: _Bench) -> list[Measurement]:
    """Window batches per second, from arrays in memory and mapped from files, generator included."""
    found = []
    stores = {"memory": bench.store, "mapped": TrajectoryStore.open(bench.folder)}
    for name, store in stores.items():
        bench.say(f"sampler: {name}")
        batch = 0

        def step(store: TrajectoryStore = store) -> int:
            nonlocal batch
            windows.sample(store, numpy_generator(_SEED, "batch", 0, batch), BATCH_SIZE, CONTEXT_LENGTH)
            batch += 1
            return 1

        for _ in range(20):
            step()
        note = f"{BATCH_SIZE} windows of {CONTEXT_LENGTH} steps, generator included"
        found.append(_measurement(f"sampler/{name}", bench.rates(step), "batches/s", None, note))
    return found


@contextmanager
def _ray() -> Iterator[None]:
    """Ray on this machine: the one that runs already, else a small one for as long as it is needed."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def _algorithm(bench: _Bench) -> Iterator[Any]:
    algorithm = bench.config().build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def _measurement(name: str, values: list[float], unit: str, config: Any, note: str) -> Measurement:
    """The median, with all that it depends on; `config` is None where no network takes part."""
    arithmetic = [] if config is None else [precision.resolve(config.precision, "cpu")]
    threads = torch.get_num_threads()
    spread = f"{min(values):.4g} to {max(values):.4g} in {len(values)} repeats"
    facts = [
        note,
        spread,
        f"{threads} thread{'s' if threads > 1 else ''}",
        *arithmetic,
        _cpu(),
        f"torch {torch.__version__}",
    ]
    return Measurement(name, statistics.median(values), unit, "; ".join(facts))


def _cpu() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
