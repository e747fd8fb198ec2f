"""A Ray of several nodes for runs that something happens to, and a run as a process of its own, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ray.cluster_utils import Cluster

TESTS = Path(__file__).resolve().parents[1]
LONGEST_S = 1200.0
"""Whoever takes longer for anything hangs; the machine may be busy with something else."""
_TIMED = {"steps_per_s", "time_total_s", "env_steps_per_s", "evaluation", "runner_restarts"}


class Violation(AssertionError):
    """Something happened that must not."""


def wait_for(what: str, found: Callable[[], bool]) -> None:
    """Wait until something is the case.

    Raises:
        Violation: it takes too long.
    """
    end = time.monotonic() + LONGEST_S
    while not found():
        if time.monotonic() > end:
            raise Violation(f"after {LONGEST_S:g} s still not: {what}")
        time.sleep(0.02)


class Machines:
    """A head node for all runs, and worker nodes for those that ask for the resource `worker`."""

    def __init__(self) -> None:
        # Processes of the cluster import what the configs of the tests name.
        paths = [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Ray's processes would give way to everything else that the machine does.
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 6, "include_dashboard": False}
        )
        self.workers: list[Any] = []

    @property
    def address(self) -> str:
        """Where runs join."""
        return str(self.cluster.address)

    def have_workers(self, count: int) -> None:
        """Add worker nodes until there are so many."""
        while len(self.workers) < count:
            self.workers.append(self.cluster.add_node(num_cpus=1, resources={"worker": 1}))
        self.cluster.wait_for_nodes()

    def lose_worker(self, number: int) -> None:
        """Kill a worker node with all that runs there, at once."""
        node = self.workers.pop(number)
        for pid in children(_raylet(node)):
            kill(pid)
        self.cluster.remove_node(node, allow_graceful=False)

    def processes(self, name: str) -> list[int]:
        """Return Ray's processes of a class on these nodes."""
        nodes = [self.cluster.head_node, *self.workers]
        return [
            pid for node in nodes for pid in children(_raylet(node)) if _title(pid).startswith(f"ray::{name}")
        ]

    def close(self) -> None:
        """End all nodes."""
        self.cluster.shutdown()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    return [pid for pid, (above, _) in _table().items() if above == parent]


def raylet_below(parent: int) -> int | None:
    """Return the raylet that a process has started."""
    return next(
        (pid for pid, (above, name) in _table().items() if above == parent and name == "raylet"), None
    )


def _table() -> dict[int, tuple[int, str]]:
    """Parent and name of each process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:  # it has just ended
                continue
            found[int(folder.name)] = int(rest.split()[1]), name
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kill(pid: int) -> None:
    """Kill a process that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Run:
    """A run folder, and the process that writes it.

    Args:
        folder: of the run.
        values: its config.
        address: of the Ray to join; None for one of its own.
    """

    def __init__(self, folder: Path, values: dict[str, Any], address: str | None) -> None:
        self.folder = folder
        self.config = folder.with_suffix(".yaml")
        self.config.write_text(yaml.safe_dump(values))
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        if address is not None:
            self.environment["RAY_ADDRESS"] = address
        self.errors: list[str] = []

    def start(self) -> None:
        """Begin, or go on from what is there."""
        command = [sys.executable, "-m", "rayrl_dt", "train", str(self.config), "--out", str(self.folder)]
        if (self.folder / "config.yaml").exists():
            command.append("--resume")
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            # Not a file: a process whose files cannot grow could not say so.
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_signals,
        )
        self.errors = []
        self._reader = threading.Thread(target=self.errors.extend, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    @property
    def over(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def wait(self) -> int:
        """Return the status that the process ends with."""
        wait_for(f"{self.folder.name} has ended", lambda: self.over)
        self._reader.join(5)  # what Ray has started may hold the pipe open
        return int(self.process.returncode)

    def records(self) -> list[dict[str, Any]]:
        """Return what the run has written of its iterations."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def progress(self) -> int:
        """Return how many iterations there are."""
        return len(self.records())

    def untimed(self) -> list[dict[str, Any]]:
        """Return the records without what a clock says; of evaluations the returns."""
        return [
            {key: value for key, value in record.items() if key not in _TIMED}
            | {"returns": [target["returns"] for target in record.get("evaluation", {}).get("targets", [])]}
            for record in self.records()
        ]

    def arrays(self) -> Iterator[tuple[str, Any]]:
        """Yield what the run has learned and collected."""
        from safetensors.numpy import load_file

        yield from load_file(str(self.folder / "policy" / "policy.safetensors")).items()
        yield from self.replay().items()

    def replay(self) -> dict[str, Any]:
        """Return the arrays of the replay of the last checkpoint."""
        newest = max((self.folder / "checkpoints").iterdir())
        with np.load(newest / "replay.npz") as saved:
            return {name: saved[name] for name in saved.files}


def _hear_signals() -> None:
    """Hear signals that the shell of these tests may have had ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
