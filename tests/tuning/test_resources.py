"""Placement: a trial that no cluster state could ever hold is refused with what there is."""

from __future__ import annotations

import pytest

from rayrl_dt.algorithms.placement import check_placement
from rayrl_dt.errors import UserError

NODES = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 1.0, "memory": 1e9}]


def test_what_an_autoscaler_may_start_is_let_through() -> None:
    large = [{"CPU": 16.0, "GPU": 1.0}] * 2
    check_placement([{"CPU": 8.0, "GPU": 1.0}] * 2, NODES, large)
    check_placement([{"CPU": 1000.0}], NODES, None)
    with pytest.raises(UserError, match="the cluster has 32 CPU"):
        check_placement([{"CPU": 8.0}] * 5, NODES, large)


def test_what_fits_is_let_through() -> None:
    check_placement([{"CPU": 1.0}, {"CPU": 4.0}], NODES)
    check_placement([{"CPU": 1.0, "GPU": 0.25}] * 2, NODES)
    check_placement([{"CPU": 2.0}] * 3, NODES)


@pytest.mark.parametrize(
    ("bundles", "message"),
    [
        ([{"CPU": 5.0}], "needs 5 CPU on one node, the largest of 2 has 4 CPU; lower env_runners"),
        ([{"CPU": 1.0, "GPU": 2.0}], "needs 1 CPU, 2 GPU on one node"),
        ([{"CPU": 1.0}] * 7, "needs 7 CPU, the cluster has 6 CPU"),
        ([{"CPU": 1.0, "GPU": 0.5}] * 3, "needs 3 CPU, 1.5 GPU, the cluster has 6 CPU, 1 GPU"),
        ([{"TPU": 1.0}], "the largest of 2 has 0 TPU"),
    ],
)
def test_what_never_fits_is_refused(bundles: list[dict[str, float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_placement(bundles, NODES)
    with pytest.raises(UserError, match=r"; take fewer$"):
        check_placement(bundles, NODES, remedy="take fewer")
