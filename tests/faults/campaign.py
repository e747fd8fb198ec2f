"""Finetunings to which something happens: each ends as if nothing had, or stops in one line and goes on from there.

    PYTHONPATH=tests python -m faults.campaign --kills 100 --seed 0        faults of all kinds in turn
    PYTHONPATH=tests python -m faults.campaign --minutes 30                a soak
    PYTHONPATH=tests python -m faults.campaign --kind runner --kills 1 --seed 17

What happens when is a function of kind and seed, the speed of the machine aside. After each run: the last step, no
record lost or twice, nothing half-written; in rounds the weights, records and replay of a run to which nothing
happened, bit for bit; otherwise a replay that holds what was counted. Prints a table, and ends with status 1 after a
violation.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from faults.environment import HANG, SLOW
from faults.machines import Machines, Run, Violation, kill, raylet_below, wait_for

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory

Rng = np.random.Generator
LOGGED, ROUNDS, UPDATES, PRETRAINED = 8, 16, 3, 4
PER_ROUND = 400
"""Two episodes, one on each runner."""
MOST_STRIKES, MOST_RECORDS_BETWEEN = 5, 4
KILLED, REFUSED = -signal.SIGKILL, 2
ASKED = (1, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP, 130)
"""Saved and stopped; or stopped before there was anything to save."""


@dataclass
class Place:
    """What a campaign works with.

    Attributes:
        folder: of its runs.
        machines: their Ray.
        data: source id of the logged data.
        references: by how a run is configured, a run to which nothing happened.
    """

    folder: Path
    machines: Machines
    data: str
    references: dict[str, Run] = field(default_factory=dict)

    @property
    def control(self) -> Path:
        """The folder in which environments look for what they are to do."""
        return self.folder / "control"

    def values(self, kind: Kind, mode: str) -> dict[str, Any]:
        """Return the config of a run."""
        resources = {"custom_resources_per_env_runner": {"worker": 0.5}} if kind.workers else {}
        return {
            "algorithm": "OnlineDT",
            "offline_data": {"dataset": self.data},
            "environment": {
                "env": "faults.environment:unreliable",
                "env_config": {"folder": str(self.control)},
            },
            "rl_module": {"model_config": {"context_length": 4, "embed_dim": 16, "num_layers": 1}},
            "training": {"gradient_steps_per_iteration": 4, "train_batch_size_per_learner": 8},
            "learners": {"num_learners": kind.learners},
            "env_runners": {"num_env_runners": kind.runners(mode), **resources, **kind.waits.get(mode, {})},
            "online": {
                "mode": mode,
                "pretrain_steps": PRETRAINED,
                "env_steps": ROUNDS * PER_ROUND,
                "env_steps_per_iteration": PER_ROUND,
                "updates_per_iteration": UPDATES,
                "replay_capacity_trajectories": 20,
            },
            "evaluation": {
                "target_returns": "-1000",
                "episodes_per_target": 2,
                "evaluation_interval": 4,
                "evaluation_num_env_runners": kind.evaluators,
            },
        }

    def reference(self, kind: Kind) -> Run:
        """Return a run in rounds to which nothing happened."""
        name = f"quiet-{kind.runners('sync')}-runners-{kind.learners}-learners"
        if name not in self.references:
            same = Kind(quiet_strike, learners=kind.learners, at_home=kind.at_home)
            quiet = Run(self.folder / name, self.values(same, "sync"), self.machines.address)
            quiet.start()
            if quiet.wait() != 0:
                raise SystemExit(f"a run to which nothing happened failed:\n{''.join(quiet.errors)[-3000:]}")
            self.references[name] = quiet
        return self.references[name]


Strike = Callable[[Place, Run, Rng], None]


def quiet_strike(place: Place, run: Run, rng: Rng) -> None:
    """Do nothing."""


def kill_driver(place: Place, run: Run, rng: Rng) -> None:
    """Kill the process that trains."""
    kill(run.process.pid)


def move_folder(place: Place, run: Run, rng: Rng) -> None:
    """Kill the process that trains, and move what it leaves."""
    kill_driver(place, run, rng)
    run.wait()
    if run.folder.exists():
        run.folder = run.folder.rename(run.folder.with_name(f"{run.folder.name}-moved"))


def kill_process(name: str, place: Place, run: Run, rng: Rng) -> None:
    """Kill one of Ray's processes of a name, as soon as there is one."""
    wait_for(f"a process {name}", lambda: run.over or bool(place.machines.processes(name)))
    for pid in rng.permutation(sorted(place.machines.processes(name)))[:1].tolist():
        kill(pid)


def kill_raylet(place: Place, run: Run, rng: Rng) -> None:
    """Kill the raylet that the run has started for itself."""
    found = raylet_below(run.process.pid)
    if found is not None:
        kill(found)


def lose_node(place: Place, run: Run, rng: Rng) -> None:
    """Lose a worker node; another one comes."""
    place.machines.lose_worker(int(rng.integers(2)))
    time.sleep(rng.uniform(0, 3))
    place.machines.have_workers(2)


def hang(place: Place, run: Run, rng: Rng) -> None:
    """Hang one of the environments."""
    (place.control / HANG).touch()


def dawdle(place: Place, run: Run, rng: Rng) -> None:
    """Have all environments be slow for a while."""
    (place.control / SLOW).touch()
    time.sleep(rng.uniform(1, 4))
    (place.control / SLOW).unlink()


def ask(place: Place, run: Run, rng: Rng) -> None:
    """Ask the run to stop."""
    run.process.send_signal(int(rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])))


def fill_disk(place: Place, run: Run, rng: Rng) -> None:
    """Let no file of the run grow beyond a size, as on a disk without room for more."""
    limit = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (int(rng.choice([100, 8_000, 50_000])), limit))


@dataclass(frozen=True)
class Kind:
    """What may happen to a run.

    Attributes:
        strike: does it.
        stops: statuses that the run may stop with; empty where it goes on.
        learners: remote ones that the run has.
        workers: its runners live on worker nodes.
        alone: it starts a Ray of its own.
        at_home: in rounds it collects in its own process.
        evaluators: remote runners that evaluate; nobody can save a run from what hangs in its own process.
        waits: by mode, how long its runners are waited for.
        modes: in which it may happen.
    """

    strike: Strike
    stops: tuple[int, ...] = ()
    learners: int = 0
    workers: bool = False
    alone: bool = False
    at_home: bool = False
    evaluators: int = 0
    waits: dict[str, dict[str, float]] = field(default_factory=dict)
    modes: tuple[str, ...] = ("sync", "async")

    def runners(self, mode: str) -> int:
        """Return how many remote runners the run has."""
        return 0 if self.at_home and mode == "sync" else 2


_EPISODE = {"episode_timeout_s": 15.0}
_SHORT = {"sync": _EPISODE, "async": {**_EPISODE, "call_timeout_s": 8.0, "lag_timeout_s": 2.0}}
KINDS = {
    "signal": Kind(ask, ASKED, at_home=True),
    "disk full": Kind(fill_disk, (REFUSED,), at_home=True),
    "raylet killed": Kind(kill_raylet, (REFUSED, 1), alone=True, at_home=True, modes=("sync",)),
    "learner killed": Kind(
        partial(kill_process, "_WrappedExecutable"), (REFUSED,), learners=2, at_home=True, modes=("sync",)
    ),
    "environment hangs": Kind(hang, evaluators=1, waits=_SHORT),
    "environments slow": Kind(dawdle),
    "node lost": Kind(lose_node, workers=True),
    "folder moved": Kind(move_folder, (KILLED,), at_home=True),
    "driver killed": Kind(kill_driver, (KILLED,), at_home=True),
    "runner killed": Kind(partial(kill_process, "SequenceEnvRunner")),
    "replay killed": Kind(partial(kill_process, "_ReplayHost"), (REFUSED,)),
}


@dataclass
class Row:
    """What came of a kind.

    Attributes:
        strikes: how often it happened.
        ok: to a run that then was as it must be.
        delay: seconds until the run's next record, or until it had stopped, at most.
    """

    strikes: int = 0
    ok: int = 0
    delay: float = 0.0


def endure(place: Place, name: str, seed: int, row: Row, *, most: int = MOST_STRIKES) -> None:
    """Have a run go through up to `most` faults of a kind.

    Raises:
        Violation: it did not end as it must.
    """
    kind, rng = KINDS[name], np.random.default_rng([seed, *name.encode()])
    mode = str(rng.choice(kind.modes))
    reference = place.reference(kind) if mode == "sync" else None
    shutil.rmtree(place.control, ignore_errors=True)
    place.control.mkdir()
    if kind.workers:
        place.machines.have_workers(2)
    folder = place.folder / f"{name.replace(' ', '-')}-{seed}-{mode}"
    run = Run(folder, place.values(kind, mode), None if kind.alone else place.machines.address)
    run.start()
    strikes = 0
    try:
        for _ in range(int(rng.integers(1, most + 1))):
            moment = run.progress() + int(rng.integers(MOST_RECORDS_BETWEEN))
            wait_for(f"{moment} records", lambda moment=moment: run.over or run.progress() >= moment)
            time.sleep(rng.uniform(0, 1))
            if run.over:
                break
            strikes += 1
            row.delay = max(row.delay, _strike(place, kind, run, rng))
        _ended(run)
        check(run, mode, reference)
    finally:
        row.strikes += strikes
        if not run.over:
            kill(run.process.pid)
            run.wait()
    row.ok += strikes
    shutil.rmtree(run.folder)


def _strike(place: Place, kind: Kind, run: Run, rng: Rng) -> float:
    """Have it happen once; return how long it took the run to go on, or to stop."""
    seen, begin = run.progress(), time.monotonic()
    kind.strike(place, run, rng)
    wait_for(
        "a next record, or an end",
        lambda: run.over or (not kind.stops and run.progress() > seen) or _done(run),
    )
    delay = time.monotonic() - begin
    if not run.over or _done(run):
        return delay
    status, said = run.wait(), "".join(run.errors)
    if status not in kind.stops:
        raise Violation(f"status {status}: {said[-2000:]}")
    if status == REFUSED:
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        if len(lines) != 1 or "Traceback" in said:
            raise Violation(f"not one line: {said[-2000:]}")
    run.start()
    return delay


def _done(run: Run) -> bool:
    return any(record["done"] for record in run.records()[-1:])


def _ended(run: Run) -> None:
    status = run.wait()
    if status != 0 or not _done(run):
        raise Violation(f"it ended with status {status}: {''.join(run.errors)[-2000:]}")


def check(run: Run, mode: str, reference: Run | None) -> None:
    """Hold a run to what must be.

    Raises:
        Violation: naming what is not.
    """
    records = run.records()
    steps = [record["gradient_steps"] for record in records]
    _must(steps == sorted(set(steps)), f"records of steps {steps}")
    _must(steps[-1] == PRETRAINED + ROUNDS * UPDATES, f"{steps[-1]} gradient steps")
    _must(records[-1]["env_steps"] >= ROUNDS * PER_ROUND, f"{records[-1]['env_steps']} environment steps")
    rests = [path.name for path in (*run.folder.glob(".policy-*"), *run.folder.glob("checkpoints/.*"))]
    _must(not rests, f"{rests} left")
    saved = run.replay()
    added, added_steps, evicted, _ = saved["counts"].tolist()
    last, numbers = records[-1], saved["episodes/numbers"].tolist()
    _must(
        added - LOGGED == last["collected_episodes"],
        f"{added - LOGGED} episodes, {last['collected_episodes']} counted",
    )
    _must(numbers == list(range(evicted, added)), f"episodes {numbers}")
    _must(
        added_steps - LOGGED * 200 == last["env_steps"], f"{added_steps} steps, {last['env_steps']} counted"
    )
    if reference is None:
        return
    for one, other in itertools.zip_longest(run.untimed(), reference.untimed()):
        _must(one == other, f"a record is {one}, and {other} where nothing happened")
    ours, theirs = dict(run.arrays()), dict(reference.arrays())
    _must(ours.keys() == theirs.keys(), "other arrays")
    for key, value in ours.items():
        same = np.array_equal(value, theirs[key], equal_nan=value.dtype.kind == "f")
        _must(same, f"{key} differs from that of a run to which nothing happened")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


def logged(folder: Path) -> str:
    """Save random episodes of Pendulum as a store; return its source id."""
    env, rng = gym.make("Pendulum-v1"), np.random.default_rng(0)
    episodes = []
    for number in range(LOGGED):
        observations, rewards = [env.reset(seed=number)[0]], []
        actions = rng.uniform(-2, 2, (200, 1)).astype(np.float32)
        for action in actions:
            observation, reward, *_ = env.step(action)
            observations.append(observation)
            rewards.append(reward)
        episodes.append(Trajectory(np.stack(observations), actions, np.array(rewards, np.float32), False))
    info = DatasetInfo("faults", env.observation_space, env.action_space, env.spec)
    TrajectoryStore.from_trajectories(episodes, info).save(folder)
    return f"store:{folder}"


def table(rows: dict[str, Row]) -> Iterator[str]:
    """Yield the lines of the result."""
    yield "| fault | times | as it must be | worst delay |"
    yield "|---|--:|--:|--:|"
    for name, row in rows.items():
        yield f"| {name} | {row.strikes} | {row.ok} | {row.delay:.1f} s |"
    total = Row(sum(row.strikes for row in rows.values()), sum(row.ok for row in rows.values()))
    yield f"| all | {total.strikes} | {total.ok} | |"


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, help="one kind of fault; all in turn by default")
    parser.add_argument("--kills", type=int, help="faults in all, at least; 20 by default")
    parser.add_argument("--minutes", type=float, help="how long to go on for")
    parser.add_argument("--seed", type=int, default=0, help="of the first run of each kind")
    chosen = parser.parse_args()
    names = [chosen.kind] if chosen.kind else list(KINDS)
    rows = {name: Row() for name in names}
    kills = chosen.kills or (20 if chosen.minutes is None else sys.maxsize)
    end = time.monotonic() + 60 * (chosen.minutes or sys.maxsize)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        machines = Machines()
        try:
            place = Place(Path(folder), machines, logged(Path(folder) / "data"))
            for number in itertools.count():
                if sum(row.strikes for row in rows.values()) >= kills or time.monotonic() > end:
                    break
                name, seed = names[number % len(names)], chosen.seed + number // len(names)
                before = rows[name].strikes
                try:
                    endure(place, name, seed, rows[name])
                    outcome = "ok"
                except Violation as error:
                    failed += 1
                    outcome = str(error)
                times = rows[name].strikes - before
                print(f"--kind {name!r} --kills 1 --seed {seed}: {times} times, {outcome}", flush=True)
        finally:
            machines.close()
    print("\n".join(table(rows)))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
