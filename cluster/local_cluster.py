"""Runs a command on a Ray of three nodes on this machine: a head and two workers, each with a `ray start` of its own.

    python cluster/local_cluster.py -- rayrl-dt doctor --address auto --storage /tmp/shared
    python cluster/local_cluster.py --kill-when /tmp/shared/online/metrics.jsonl -- rayrl-dt finetune runs/dt \
        --out /tmp/shared/online --set online.mode=async --set env_runners.num_env_runners=2

With root on Linux the nodes get network namespaces of their own, joined by a bridge, so that they talk over addresses
as machines do; otherwise they share the machine's address and differ in their ports. `--kill-when` kills the second
worker once a file exists, all of its processes at once, as a machine that loses its power would. The command's exit
status is this script's; only what this script started is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PORT = 6399
_SUBNET = "10.213.77"
_START_S = 120.0
_HEAD_CPUS = 0
_UP = "Ray runtime started"


@dataclass
class Node:
    """A node of the cluster.

    Attributes:
        name: of it, and of its network namespace.
        address: that the others reach it at.
        enter: what a command begins with to run there.
        process: `ray start --block` there.
    """

    name: str
    address: str
    enter: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self, head: Node, cpus: int, folder: Path) -> None:
        """Start Ray there, in a process group of its own, and wait until it is up.

        Raises:
            SystemExit: it does not come up.
        """
        log = folder / f"{self.name}.log"
        command = [_ray(), "start", "--block", f"--num-cpus={cpus}", f"--node-ip-address={self.address}"]
        command += ["--disable-usage-stats", f"--object-store-memory={128 * 2**20}"]
        if self is head:
            # One folder for each node's sockets and logs, with a short path: sockets allow 107 characters.
            command += [
                "--head",
                f"--port={_PORT}",
                "--include-dashboard=false",
                f"--temp-dir={folder / 'ray'}",
            ]
        else:
            command += [f"--address={head.address}:{_PORT}"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*self.enter, *command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + _START_S
        while _UP not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.name} did not come up; see {log}")
            time.sleep(0.2)

    def kill(self) -> None:
        """Kills all processes of the node at once."""
        if self.process is None:
            return
        for process in _descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        self.process = None


def _descendants(root: int) -> list[int]:
    """Return a process and everything that it started, while it is there to ask."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def _ray() -> str:
    """Ray's command, of this interpreter's environment."""
    return str(Path(sys.executable).with_name("ray"))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def network(names: Sequence[str]) -> Iterator[list[Node]]:
    """Nodes in network namespaces of their own, joined by a bridge; gone afterwards."""
    tag = f"rdt{os.getpid() % 10000}"
    spaces: list[str] = []
    try:
        _run("ip", "link", "add", tag, "type", "bridge")
        _run("ip", "link", "set", tag, "up")
        nodes = []
        for number, name in enumerate(names):
            space, outer, address = f"{tag}-{name}", f"{tag}v{number}", f"{_SUBNET}.{number + 1}"
            _run("ip", "netns", "add", space)
            spaces.append(space)
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", outer, "master", tag, "up")
            _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            # Ray finds its own address by asking for the way outside.
            _run("ip", "-n", space, "route", "add", "default", "dev", "eth0")
            nodes.append(Node(name, address, ["ip", "netns", "exec", space]))
        yield nodes
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        subprocess.run(["ip", "link", "delete", tag], capture_output=True)


@contextlib.contextmanager
def same_machine(names: Sequence[str]) -> Iterator[list[Node]]:
    """Nodes at one address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        address = "127.0.0.1"
        with contextlib.suppress(OSError):  # no way outside
            probe.connect(("192.0.2.1", 9))  # sends nothing; says which address leads outside
            address = probe.getsockname()[0]
    yield [Node(name, address) for name in names]


def _namespaces_work() -> bool:
    """Whether this process may make network namespaces and links."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    probe = f"rdtprobe{os.getpid() % 10000}"
    made = subprocess.run(["ip", "link", "add", probe, "type", "bridge"], capture_output=True).returncode == 0
    subprocess.run(["ip", "link", "delete", probe], capture_output=True)
    space = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
    return made and space


def _lose(node: Node, when: Path, over: threading.Event) -> None:
    """Wait for a file, unless all is over before, and kill a node."""
    while not over.wait(0.2):
        if when.exists():
            node.kill()
            sys.stderr.write(f"killed {node.name}\n")
            return


def main() -> int:
    """Start the nodes, run the command on the head, stop the nodes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpus", type=int, default=2, help="of each worker, as Ray counts them")
    parser.add_argument("--kill-when", type=Path, help="kill the second worker once this file exists")
    parser.add_argument("--one-network", action="store_true", help="no network namespaces")
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    apart = not arguments.one_network and _namespaces_work()
    names = ("head", "worker1", "worker2")
    folder = Path(tempfile.mkdtemp(prefix="rdt-"))
    # Whether Ray 2.60 asks for a token hangs on a file in the home folder, and for `ray start --address` not even on
    # that, unless the environment says it.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    # Stopped from outside, it still stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (network if apart else same_machine)(names) as nodes:
        head, *workers = nodes
        try:
            # In turn: three at once starve each other on a small machine until Ray gives up.
            head.start(head, _HEAD_CPUS, folder)
            for worker in workers:
                worker.start(head, arguments.cpus, folder)
            where = "network namespaces" if apart else "one network"
            sys.stderr.write(f"{len(nodes)} nodes in {where}, logs in {folder}\n")
            over = threading.Event()
            if arguments.kill_when is not None:
                loss = (workers[-1], arguments.kill_when, over)
                threading.Thread(target=_lose, args=loss, daemon=True).start()
            environment = {**os.environ, "RAY_ADDRESS": f"{head.address}:{_PORT}"}
            status = subprocess.run([*head.enter, *arguments.command], env=environment).returncode
            over.set()
        finally:
            for node in reversed(nodes):
                node.kill()
    if status == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
