"""A cluster's nodes: what is said where they differ, and a real cluster of three on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayrl_dt import UserError
from rayrl_dt.data import sources
from rayrl_dt.doctor import nodes

HERE = nodes.describe(None, 0.0)


def test_equal_nodes_are_fine() -> None:
    (check,) = nodes.compare_versions({"node-0": HERE, "node-1": HERE})
    assert check.status == "ok" and check.found.startswith("2 nodes, all with python 3.")
    for name in ("ray", "torch", "rayrl_dt", "gymnasium", "minari"):
        assert f"{name} {HERE.versions[name]}" in check.found
    assert "+" not in HERE.versions["torch"], "the builds of one version may differ"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("No module named 'rayrl_dt'", "node-1: No module named 'rayrl_dt'"),
        (
            replace(HERE, versions=HERE.versions | {"torch": "2.0.0", "ray": "2.9.0"}),
            "node-1 has ray 2.9.0, torch 2.0.0",
        ),
        (replace(HERE, versions={**HERE.versions, "minari": "0"}), "node-1 has minari 0"),
    ],
)
def test_nodes_that_differ_are_an_error(answer: Any, found: str) -> None:
    (check,) = nodes.compare_versions({"node-0": HERE, "node-1": answer})
    assert (check.status, check.found) == ("error", found)
    assert f"ray {HERE.versions['ray']}" in (check.remedy or "")


@pytest.mark.parametrize(
    ("seen", "offered", "status", "found"),
    [
        (None, 0, "ok", "none"),
        (4, 4, "ok", "4 on 1 node, seen by torch"),
        (8, 4, "ok", "4 on 1 node"),
        (0, 4, "error", "node-1: Ray offers 4 GPUs and torch sees 0"),
        (2, 0, "warning", "torch sees 2 GPUs and Ray offers none"),
    ],
)
def test_gpus_that_cannot_be_used(seen: int | None, offered: int, status: str, found: str) -> None:
    answers = {"node-0": HERE, "node-1": replace(HERE, gpus=seen), "node-2": "gone"}
    (check,) = nodes.compare_gpus(answers, {"node-0": 0.0, "node-1": offered, "node-2": 0.0})
    assert check.status == status and found in check.found
    assert (check.remedy is None) == (status == "ok")


def test_a_node_that_sees_another_folder_is_named(tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    marks = {"node-0": "a" * 32, "node-1": "b" * 32}
    nodes.leave_mark(str(shared), marks["node-0"])
    nodes.leave_mark(str(shared), marks["node-1"])
    assert nodes.unread_marks(str(shared), marks) == []
    unread = nodes.unread_marks(str(other), marks)
    check = nodes.compare_storage(shared, dict.fromkeys(marks), {"node-0": [], "node-1": unread})
    assert check.status == "error" and check.found == "node-1 does not see what node-0, node-1 wrote"
    assert "all nodes share" in (check.remedy or "")
    check = nodes.compare_storage(shared, dict.fromkeys(marks), {"node-0": [], "node-1": []})
    assert check.status == "ok"
    with pytest.raises(OSError, match="not the one that the driver sees"):
        nodes.leave_mark(str(tmp_path / "elsewhere"), "mark")


def test_a_node_that_does_not_reach_a_uri_is_named() -> None:
    check = nodes.compare_uri("s3://b/runs", {"node-0": None, "node-1": "no credentials"})
    assert (check.status, check.found) == ("error", "node-1: no credentials")
    assert "credentials" in (check.remedy or "")


def test_data_that_is_missing_or_differs_is_an_error(make_store: Any, tmp_path: Path) -> None:
    make_store().save(tmp_path / "data")
    source = f"store:{tmp_path / 'data'}"
    here = nodes.describe(source, 0.0)
    assert isinstance(here.data, int) and here.data > 0
    away = nodes.describe(f"store:{tmp_path / 'elsewhere'}", 0.0)
    (check,) = nodes.compare_data(source, {"node-0": here, "node-1": away})
    assert check.status == "error" and check.found.startswith("node-1: there is no file at")
    other = replace(here, data=here.data + 1)
    (check,) = nodes.compare_data(source, {"node-0": here, "node-1": other})
    assert (
        check.status == "error"
        and "node-1 has" in check.found
        and "MINARI_DATASETS_PATH" in str(check.remedy)
    )
    (check,) = nodes.compare_data(source, {"node-0": here, "node-1": here})
    assert check.status == "ok"


@pytest.mark.parametrize(
    "source", ["minari:no/such-v0", "recipe:pendulum-mixed", "recipe:pendulum", "d4rl:no.hdf5"]
)
def test_locating_makes_and_downloads_nothing(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        sources.locate(source)
    assert list(tmp_path.iterdir()) == []


# A process of its own: Ray allows one cluster per process, and this one must not join that of the other tests.
_CLUSTER = """
import json, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from rayrl_dt.doctor import diagnose

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
try:
    alone = diagnose(storage=f"file://{sys.argv[1]}", address=cluster.address)
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()
    storage, source = Path(sys.argv[1]), sys.argv[2]
    checks = diagnose(storage=storage, dataset=source, address=cluster.address)
    print(json.dumps([[check.to_json() for check in each] for each in (alone, checks)]))
finally:
    cluster.shutdown()
"""


@pytest.mark.ray
def test_three_nodes(make_store: Any, tmp_path: Path) -> None:
    make_store().save(tmp_path / "data")
    storage = tmp_path / "shared"
    storage.mkdir()
    command = [sys.executable, "-c", _CLUSTER, str(storage), f"store:{tmp_path / 'data'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    alone, checks = (
        {check["name"]: check for check in each} for each in json.loads(done.stdout.splitlines()[-1])
    )
    # A head node without CPUs, and nobody yet who could do anything.
    assert alone["Ray"]["status"] == "error" and "0 CPUs" in alone["Ray"]["found"]
    assert "nothing can run" in alone["Ray"]["found"] and "--num-cpus N" in alone["Ray"]["remedy"]
    assert alone["storage on nodes"]["found"] == f"file://{storage} can be written and read from 1 node"
    assert checks["Ray"]["status"] == "ok"
    assert "2 CPUs, 1 GPUs" in checks["Ray"]["found"]
    assert checks["Ray nodes"]["found"].startswith("3 nodes, all with python")
    assert "3 nodes wrote to it and read each other" in checks["storage on nodes"]["found"]
    assert "is on 3 nodes" in checks["data on nodes"]["found"]
    # The second node pretends to have a GPU.
    assert checks["GPUs on nodes"]["status"] == "error"
    assert "Ray offers 1 GPUs and torch sees 0" in checks["GPUs on nodes"]["found"]
    assert list(storage.iterdir()) == [], "no traces"
