"""Whether a cluster can hold what is asked of it, with the nodes that its autoscaler may start; Ray waits for ever."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.algorithms.rllib_internals import autoscaled_groups
from rayrl_dt.errors import UserError

__all__ = [
    "CPUS_REMEDY",
    "Resources",
    "check_placement",
    "check_room",
    "check_run",
    "nodes_that_may_start",
    "requested",
]

_LOG = logging.getLogger(__name__)
_REMEDY = (
    "lower env_runners.num_env_runners, evaluation.evaluation_num_env_runners, learners.num_learners or "
    "learners.num_gpus_per_learner, or join a larger cluster (RAY_ADDRESS, or tune --address)"
)
CPUS_REMEDY = "lower --cpus, or join a larger cluster (--address or RAY_ADDRESS)"
"""Of commands that start processes of one kind alone."""
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""What Ray's cluster launcher leaves on a head node."""
_KUBERAY = "KUBERAY_GEN_RAY_START_CMD"
"""How KubeRay has started the Ray of this pod."""
_ANY_NUMBER = 10_000
Resources = Mapping[str, float]


def requested(config: Any) -> list[dict[str, float]]:
    """Return what the processes of a config reserve, the driver aside."""
    per_learner = config.num_cpus_per_learner
    if per_learner == "auto":
        per_learner = 0 if config.num_gpus_per_learner else 1
    runner = {"CPU": config.num_cpus_per_env_runner, "GPU": config.num_gpus_per_env_runner}
    learner = {"CPU": per_learner, "GPU": config.num_gpus_per_learner}
    runners = config.num_env_runners + config.evaluation_num_env_runners
    bundles = [runner] * runners + [learner] * config.num_learners
    return [{kind: float(amount) for kind, amount in bundle.items() if amount} for bundle in bundles]


def check_run(config: Any) -> None:
    """Refuse a config whose processes would not fit into the empty cluster; say so if they have to wait.

    Raises:
        UserError: they would not fit, whatever its autoscaler starts.
    """
    check_room(requested(config), what="the run")


def check_room(bundles: Sequence[Resources], *, what: str, remedy: str = _REMEDY) -> None:
    """Refuse what would not fit into the Ray that this process has joined, were it empty; say so if it has to wait.

    Args:
        bundles: what is reserved, each bundle on one node.
        what: needs them, for the messages.
        remedy: what to do where they do not fit.

    Raises:
        UserError: they would not fit, whatever its autoscaler starts.
    """
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check_placement(bundles, alive, nodes_that_may_start(), what=what, remedy=remedy)
    needed, free = _sum(bundles), ray.available_resources()
    if any(free.get(kind, 0.0) < amount for kind, amount in needed.items()):
        there = _text({kind: free.get(kind, 0.0) for kind in needed})
        _LOG.warning(
            "%s needs %s, of which %s is free now: it waits for the rest.",
            what.capitalize(),
            _text(needed),
            there,
        )


def nodes_that_may_start() -> list[Resources] | None:
    """Return what the nodes have that an autoscaler may start, those included that run; None for any number of any."""
    found: list[Resources] = []
    for group in autoscaled_groups():
        count = _ANY_NUMBER if group.max_count < 0 else min(group.max_count, _ANY_NUMBER)
        found += [dict(group.resources)] * count
    if not found and _BOOTSTRAP.expanduser().is_file():
        types = yaml.safe_load(_BOOTSTRAP.expanduser().read_text()).get("available_node_types") or {}
        for kind in types.values():
            if not kind.get("resources"):
                return None  # what the cloud's machine has
            found += [kind["resources"]] * int(kind.get("max_workers", 0))
    return None if not found and _kuberay_may_scale(os.environ.get(_KUBERAY, "").split()) else found


def _kuberay_may_scale(command: Sequence[str]) -> bool:
    """Return whether KubeRay's autoscaler may run: a head beside it has no monitor; a worker's command is silent."""
    return bool(command) and ("--head" not in command or "--no-monitor" in command)


def check_placement(
    bundles: Sequence[Resources],
    alive: Sequence[Resources],
    may_start: Sequence[Resources] | None = (),
    *,
    what: str = "a trial",
    remedy: str = _REMEDY,
) -> None:
    """Refuse what would not fit into the empty cluster, and say what there is.

    What fits in sum and bundle by bundle may still not fit in practice, where bundles break badly over nodes.

    Args:
        bundles: what is reserved, each bundle on one node.
        alive: what each node has that is there.
        may_start: what the nodes have that an autoscaler may start; None for any number of any.
        what: needs them, for the message.
        remedy: what to do where they do not fit, for the message.

    Raises:
        UserError: it would not fit.
    """
    if may_start is None:
        return
    nodes = [*alive, *may_start]
    for bundle in bundles:
        if not any(all(node.get(kind, 0) >= amount for kind, amount in bundle.items()) for node in nodes):
            largest = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in bundle}
            raise UserError(
                f"{what} needs {_text(bundle)} on one node, the largest of {len(nodes)} has "
                f"{_text(largest)}; {remedy}"
            )
    needed, now, later = _sum(bundles), _sum(alive), _sum(may_start)
    there = {kind: max(now[kind], later[kind]) for kind in needed}
    if any(there[kind] < amount for kind, amount in needed.items()):
        raise UserError(f"{what} needs {_text(needed)}, the cluster has {_text(there)}; {remedy}")


def _sum(parts: Sequence[Resources]) -> defaultdict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for kind, amount in part.items():
            total[kind] += amount
    return total


def _text(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in sorted(resources.items()))
