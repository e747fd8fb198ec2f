"""Trains and measures the runs of a suite alike, several at a time.

Each run is a process of its own (`rayrl-dt train`, then an evaluation at the data's best return), so that one that
dies takes no other with it. The same call again continues where the last one stopped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from rayrl_dt.cores import usable_cores
from rayrl_dt.data import sources
from rayrl_dt.errors import UserError, whole
from rayrl_dt.interop.run_files import MAXIMUM, read_records, step_of
from rayrl_dt.runs.checkpoints import latest_checkpoint
from rayrl_dt.tuning.suite_runs import SuiteRun

__all__ = ["Failure", "SuiteStatus", "run_suite"]

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and the last line it printed."""

    run: SuiteRun
    reason: str


@dataclass(frozen=True)
class SuiteStatus:
    """How far the suite is.

    Attributes:
        done: runs that finished, earlier ones included.
        failed: runs that did not.
        total: all runs.
        running: gradient step of each run that is under way, as of its last iteration.
    """

    done: int
    failed: int
    total: int
    running: Mapping[SuiteRun, int]


def run_suite(
    runs: Sequence[SuiteRun],
    *,
    jobs: int = 1,
    episodes_at_maximum: int = 20,
    observe: Callable[[SuiteStatus], None] | None = None,
) -> list[Failure]:
    """Train and evaluate what is not finished yet, `jobs` runs at a time.

    Ctrl-C reaches the runs too: each writes a checkpoint, and the next call continues from there.

    Args:
        runs: from `read_suite`.
        jobs: processes at a time; the cores are divided among them.
        episodes_at_maximum: of the evaluation at the data's best return.
        observe: told about progress every half second.

    Raises:
        UserError: `jobs` is not positive, or a run folder holds another config's run.
    """
    whole("jobs", jobs, least=1)
    for run in runs:
        _prepare(run)
    unfinished = [run for run in runs if not run.finished]
    done = len(runs) - len(unfinished)
    failures = _load_data(unfinished)
    missing = {failure.run for failure in failures}
    waiting = [run for run in unfinished if run not in missing]
    active: dict[SuiteRun, tuple[Iterator[list[str]], subprocess.Popen[bytes]]] = {}
    threads = str(max(1, usable_cores() // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, "TERM": "dumb"}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                commands = _commands(run, episodes_at_maximum)
                active[run] = commands, _start(next(commands), run, environment)
            for run, (commands, process) in list(active.items()):
                status = process.poll()
                if status is None:
                    continue
                following = next(commands, None) if status == 0 else None
                if following is not None:
                    active[run] = commands, _start(following, run, environment)
                    continue
                del active[run]
                if status == 0 and run.finished:
                    done += 1
                else:
                    failures.append(Failure(run, _reason(run, status)))
            if observe is not None:
                steps = {run: _gradient_step(run) for run in active}
                observe(SuiteStatus(done, len(failures), len(runs), steps))
            if active:
                time.sleep(_POLL_SECONDS)
    finally:
        for _, process in active.values():
            # After Ctrl-C the runs are writing their checkpoints already; any other end asks them to.
            process.terminate()
        for _, process in active.values():
            process.wait()
    return failures


def _prepare(run: SuiteRun) -> None:
    """Write the run's config file, and clears what a run that died before its first checkpoint left."""
    text = yaml.safe_dump(dict(run.values), sort_keys=False)
    if run.config.exists() and yaml.safe_load(run.config.read_text()) != yaml.safe_load(text):
        raise UserError(
            f"{run.folder} holds a run of another config ({run.config}); choose another --out, or delete it"
        )
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.config.write_text(text)
    if latest_checkpoint(run.folder) is None:
        shutil.rmtree(run.folder, ignore_errors=True)


def _load_data(runs: Sequence[SuiteRun]) -> list[Failure]:
    """Download or make each data set once, before several processes want it; those of a missing one fail."""
    reasons: dict[str, str] = {}
    for dataset in dict.fromkeys(run.dataset for run in runs):
        try:
            sources.load(dataset)
        except UserError as error:
            reasons[dataset] = str(error)
    return [Failure(run, reasons[run.dataset]) for run in runs if run.dataset in reasons]


def _commands(run: SuiteRun, episodes_at_maximum: int) -> Iterator[list[str]]:
    """Return what is left to do for a run, one command after the other."""
    program = [sys.executable, "-m", "rayrl_dt"]
    folder = str(run.folder)
    if not run.trained:
        again = [] if latest_checkpoint(run.folder) is None else ["--resume"]
        yield [*program, "train", str(run.config), "--out", folder, *again]
    maximum = ["--targets", "dataset:max", "--episodes", str(episodes_at_maximum)]
    seed = ["--seed", str(run.values["debugging"]["seed"])]
    # What the suite's own files name, or trust, is the user's.
    own = run.values.get("environment") or {}
    trust = ["--trust-environment"] if own.get("env") or own.get("trust_environment") else []
    yield [*program, "eval", folder, *maximum, *seed, *trust, "--json", str(run.folder / MAXIMUM)]


def _start(command: list[str], run: SuiteRun, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with run.log.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _reason(run: SuiteRun, status: int) -> str:
    lines = [line.strip() for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error:" in line or "diverged:" in line), None)
    ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{said or (lines[-1] if lines else 'no output')} ({ended}; log: {run.log})"


def _gradient_step(run: SuiteRun) -> int:
    records, _ = read_records(run.folder)
    return max(0, step_of(records[-1])) if records else 0
