"""Starting and joining Ray: what cannot work is told in one line, with the remedy, and soon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrl_dt import DTConfig, OnlineDTConfig, UserError
from rayrl_dt.algorithms import placement
from rayrl_dt.algorithms.placement import nodes_that_may_start, requested
from rayrl_dt.algorithms.session import join_ray, start_ray


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "6379", "a:b"]
)
def test_an_address_where_nobody_answers_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=f"nobody answers at the Ray address {address}"):
        join_ray(address)


def test_a_temporary_folder_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 90)
    with pytest.raises(UserError, match=r"has 95 bytes.*set RAY_TMPDIR"):
        join_ray("local")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("HOME", "/proc/nobody", "HOME"),
        # Ray waits this long for its first process, which needs a second on any machine.
        ("RAY_gcs_server_port_wait_time_s", "0", "RAY_gcs_server_port_wait_time_s=120"),
    ],
)
def test_a_home_that_cannot_be_written_and_a_slow_ray_are_one_line(
    variable: str, value: str, remedy: str
) -> None:
    code = "from rayrl_dt.algorithms.session import join_ray; join_ray('local', num_cpus=1, include_dashboard=False)"
    environment = {**os.environ, variable: value}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "UserError: Ray did not start (" in ended.stderr.splitlines()[-1] and remedy in ended.stderr


LATE = """
import time, types
import ray
from ray._private import node, services
from rayrl_dt.algorithms.session import join_ray

find, calls = services.get_node, []

def late(*given):
    calls.append(given)
    if len(calls) == 1:
        raise RuntimeError("not yet")
    return find(*given)

services.get_node = late
node.time = types.SimpleNamespace(**{**vars(time), "monotonic": lambda: time.monotonic() + 100 * len(calls)})
join_ray("local", num_cpus=1, include_dashboard=False)
print(ray.get(ray.remote(lambda: 41).remote()), ray.cluster_resources()["CPU"])
"""
"""Ray's first look for its own process fails, and a hundred seconds are over."""


@pytest.mark.ray
def test_a_local_ray_that_is_late_is_started_again() -> None:
    ended = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert ended.stdout.split() == ["41", "1.0"], ended.stderr[-2000:]


@pytest.mark.ray
def test_a_local_ray_listens_to_this_machine_alone() -> None:
    code = "from rayrl_dt.algorithms.session import start_ray; start_ray(); import ray; print(ray.nodes())"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "'NodeManagerAddress': '127.0.0.1'" in ended.stdout, ended.stderr[-2000:]


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("ray start --head  --block  --num-cpus=0", []),
        ("ray start --head  --no-monitor  --num-cpus=0", None),
        # A worker's is the same with and without an autoscaler.
        ("ray start  --address=head:6379  --block", None),
    ],
)
def test_kuberay_starts_nodes_where_it_has_its_autoscaler(
    monkeypatch: pytest.MonkeyPatch, command: str, found: list[Any] | None
) -> None:
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", command)
    monkeypatch.setattr(placement, "autoscaled_groups", lambda: ())
    monkeypatch.setattr(placement, "_BOOTSTRAP", Path("nowhere"))
    assert nodes_that_may_start() == found


def test_what_a_config_asks_for_is_added_up() -> None:
    assert requested(DTConfig()) == []
    config = OnlineDTConfig().env_runners(num_env_runners=2).evaluation(evaluation_num_env_runners=1)
    assert requested(config.learners(num_learners=1)) == [{"CPU": 1.0}] * 4
    assert requested(DTConfig().learners(num_learners=1, num_gpus_per_learner=1)) == [{"GPU": 1.0}]


@pytest.mark.ray
def test_a_run_with_more_runners_than_room_is_refused_unless_an_autoscaler_starts_nodes(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OnlineDTConfig().env_runners(num_env_runners=64)
    assert nodes_that_may_start() == []
    with pytest.raises(UserError, match=r"the run needs 64 CPU, the cluster has \d+ CPU; lower env_runners"):
        start_ray(config)
    # What Ray's cluster launcher leaves on a head node.
    monkeypatch.setenv("HOME", str(tmp_path))
    worker = {"resources": {"CPU": 32}, "max_workers": 2}
    head = {"resources": {"CPU": 0}, "max_workers": 0}
    bootstrap = {"available_node_types": {"head": head, "worker": worker}}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(bootstrap))
    start_ray(config)
    with pytest.raises(UserError, match="the run needs 65 CPU, the cluster has 64 CPU"):
        start_ray(config.copy(copy_frozen=False).env_runners(num_env_runners=65))


@pytest.mark.ray
def test_a_ray_of_its_own_that_is_asked_for_by_name_has_room_for_the_run() -> None:
    code = (
        "import ray; from rayrl_dt import OnlineDTConfig; from rayrl_dt.algorithms.session import start_ray; "
        "start_ray(OnlineDTConfig().env_runners(num_env_runners=7)); print(ray.cluster_resources()['CPU'])"
    )
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert float(ended.stdout.split()[-1]) >= 8, ended.stderr[-2000:]
