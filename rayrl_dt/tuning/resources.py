"""Whether a cluster can hold a trial at all; Ray Tune would wait for ever for one that it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rayrl_dt.errors import UserError

__all__ = ["check_placement"]

_REMEDY = (
    "lower env_runners.num_env_runners, learners.num_learners or learners.num_gpus_per_learner, "
    "or join a larger cluster with --address"
)

Resources = Mapping[str, float]


def check_placement(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> None:
    """Refuse a trial that would not fit into the empty cluster.

    A trial that fits in sum and bundle by bundle may still not fit in practice, where bundles break badly over nodes.

    Args:
        bundles: what a trial reserves, each bundle on one node.
        nodes: what each node has.

    Raises:
        UserError: a bundle fits on no node, or all together exceed the cluster; says what there is.
    """
    needed, there = _sum(bundles), _sum(nodes)
    for bundle in bundles:
        if not any(all(node.get(kind, 0) >= amount for kind, amount in bundle.items()) for node in nodes):
            raise UserError(
                f"a trial needs {_text(bundle)} on one node, the largest of {len(nodes)} has "
                f"{_text(_largest(nodes, bundle))}; {_REMEDY}"
            )
    if any(there[kind] < amount for kind, amount in needed.items()):
        raise UserError(
            f"a trial needs {_text(needed)}, the cluster has {_text({k: there[k] for k in needed})}; {_REMEDY}"
        )


def _sum(parts: Sequence[Resources]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        for kind, amount in part.items():
            total[kind] += amount  # type: ignore[assignment]
    return total


def _largest(nodes: Sequence[Resources], bundle: Resources) -> dict[str, float]:
    return {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in bundle}


def _text(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in sorted(resources.items()) if kind in resources)
