"""Ray: its resources, and its nodes, each asked by a small task of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayrl_dt.algorithms.placement import nodes_that_may_start
from rayrl_dt.algorithms.session import join_ray
from rayrl_dt.cores import usable_cores
from rayrl_dt.doctor import nodes
from rayrl_dt.doctor.check import Check, size
from rayrl_dt.doctor.folders import STORAGE_REMEDY, probe_folder, probe_uri
from rayrl_dt.doctor.machine import shared_memory
from rayrl_dt.errors import one_line

__all__ = ["check_ray", "check_storage"]

_NODE_TIMEOUT_S = 60.0


def check_ray(
    *, storage: Path | str | None, dataset: str | None, address: str | None, start_ray: bool
) -> list[Check]:
    """Check Ray's resources, nodes and versions, and in a cluster storage and data as the nodes see them.

    The arguments are those of `doctor.diagnose`.
    """
    import ray

    mine = not ray.is_initialized()
    if mine and not (start_ray or address):
        return [Check("Ray", "ok", f"{ray.__version__}, not started"), *shared_memory(None)]
    try:
        if mine:
            local = {} if address else {"include_dashboard": False, "num_cpus": usable_cores()}
            join_ray(address or "local", **local)
        alive = [node for node in ray.nodes() if node["Alive"]]
        where = address or ("started here" if mine else "already running")
        checks = [_check_capacity(ray.cluster_resources(), f"{ray.__version__}, {where}")]
        checks += _check_nodes(alive, storage, dataset) if address else _check_nodes(alive, None, None)
        store = sum(
            node["Resources"].get("object_store_memory", 0.0)
            for node in alive
            if node["NodeID"] == ray.get_runtime_context().get_node_id()
        )
        return checks + shared_memory(store)
    finally:
        if mine and ray.is_initialized():
            ray.shutdown()


def _check_capacity(resources: dict[str, float], where: str) -> Check:
    """Check that something can run, now or on nodes that an autoscaler starts."""
    found, may_start = f"{where}: {_resources(resources)}", nodes_that_may_start()
    if resources.get("CPU", 0) > 0:
        return Check("Ray", "ok", found)
    if may_start is None or any(node.get("CPU", 0) > 0 for node in may_start):
        return Check("Ray", "ok", f"{found}; its autoscaler starts nodes when something is to run")
    remedy = "start nodes that have CPUs: ray start --address HEAD:6379 --num-cpus N"
    return Check("Ray", "error", f"{found}, so nothing can run", remedy)


def _resources(resources: dict[str, float]) -> str:
    return (
        f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, "
        f"{size(resources.get('memory', 0))} memory, {size(resources.get('object_store_memory', 0))} object store"
    )


def _check_nodes(alive: list[dict[str, Any]], storage: Path | str | None, dataset: str | None) -> list[Check]:
    ids = _names(alive)
    gpus = {name: node["Resources"].get("GPU", 0.0) for name, node in zip(ids, alive, strict=True)}
    answers = _ask(ids, nodes.describe, {name: (dataset, gpus[name]) for name in ids})
    checks = [*nodes.compare_versions(answers), *nodes.compare_gpus(answers, gpus)]
    # A node without this package cannot say anything else either.
    able = {name: ids[name] for name, answer in answers.items() if not isinstance(answer, str)}
    if isinstance(storage, str) and able:
        checks.append(nodes.compare_uri(storage, _ask(able, probe_uri, {name: (storage,) for name in able})))
    elif isinstance(storage, Path) and able:
        checks.append(check_storage(storage, able))
    if dataset is not None and able:
        checks += nodes.compare_data(dataset, answers)
    return checks


def _names(alive: list[dict[str, Any]]) -> dict[str, str]:
    """Return Ray's ids of nodes, by the names that users read."""
    return {f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})": node["NodeID"] for node in alive}


def check_storage(storage: Path, ids: Mapping[str, str] | None = None) -> Check:
    """Let every node write to a folder of the driver's, then let every node read what all have written.

    Args:
        storage: the folder; if it does not exist, the nearest parent that does is probed.
        ids: Ray's ids of the nodes, by name; None for all of the Ray that this process has joined.
    """
    import ray

    if ids is None:
        ids = _names([node for node in ray.nodes() if node["Alive"]])
    marks = {name: uuid.uuid4().hex for name in ids}
    try:
        with probe_folder(storage) as probe:
            wrote = _ask(ids, nodes.leave_mark, {name: (str(probe), marks[name]) for name in ids})
            there = {name: mark for name, mark in marks.items() if wrote[name] is None}
            unread = _ask(ids, nodes.unread_marks, {name: (str(probe), there) for name in there})
    except OSError as error:
        return Check("storage on nodes", "error", f"{storage}: {one_line(error)}", STORAGE_REMEDY)
    return nodes.compare_storage(storage, wrote, unread)


def _ask(
    ids: Mapping[str, str], question: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Ask each node that there are arguments for, all by name; one that cannot answer gives its error as a string."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = {}
    for name, values in arguments.items():
        there = NodeAffinitySchedulingStrategy(node_id=ids[name], soft=False)
        asked[name] = task.options(scheduling_strategy=there).remote(*values)
    references = list(asked.values())
    ready, late = ray.wait(references, num_returns=len(references), timeout=_NODE_TIMEOUT_S)
    for reference in late:
        ray.cancel(reference, force=True)
    answers: dict[str, Any] = {}
    for name, reference in asked.items():
        if reference not in ready:
            answers[name] = f"no answer within {_NODE_TIMEOUT_S:.0f} s"
            continue
        try:
            answers[name] = ray.get(reference)
        except Exception as error:  # the node is gone, or our package is missing there
            cause = getattr(error, "cause", None)
            answers[name] = one_line(cause if isinstance(cause, Exception) else error)
    return answers
