"""Whether all nodes of a cluster see the folder of a sweep; checked before anything is scheduled."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from rayrl_dt.errors import UserError

__all__ = ["check_shared", "complain"]

_TIMEOUT_S = 60.0


def check_shared(folder: Path) -> None:
    """Has each node of the running Ray read what this process writes, and write beside it.

    Args:
        folder: absolute; it, or its nearest parent that exists, is probed.

    Raises:
        UserError: a node sees another folder, or may not write.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    existing = folder
    while not existing.is_dir():
        existing = existing.parent
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
    content = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix=".rayrl_dt-probe-", dir=existing) as place:
        (Path(place) / "driver").write_text(content)
        asked = {
            node["NodeManagerHostname"] + " " + node["NodeID"][:6]: probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            ).remote(place, content, node["NodeID"])
            for node in nodes
        }
        answers: dict[str, str | None] = {}
        for name, answer in asked.items():
            try:
                answers[name] = ray.get(answer, timeout=_TIMEOUT_S)
            except ray.exceptions.RayError as error:  # the node is gone, or this package is missing there
                answers[name] = str(error).strip().splitlines()[-1]
    complain(folder, answers)


def complain(folder: Path, answers: Mapping[str, str | None]) -> None:
    """Refuses a folder that a node has found something wrong with.

    Args:
        folder: that was probed.
        answers: what is wrong on each node; None for nothing.

    Raises:
        UserError: naming the nodes.
    """
    wrong = {name: answer for name, answer in answers.items() if answer is not None}
    if wrong:
        nodes = "; ".join(f"{name}: {answer}" for name, answer in wrong.items())
        raise UserError(
            f"{folder} is not shared by all nodes ({nodes}); choose an --out on storage that each of them mounts"
        )


def _probe(place: str, content: str, node: str) -> str | None:
    """Runs on a node: what is wrong with the folder there; None if nothing."""
    folder = Path(place)
    try:
        if (folder / "driver").read_text() != content:
            return "it holds another file than the driver wrote"
        (folder / node).write_text(content)
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return None
