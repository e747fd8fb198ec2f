"""Online finetuning across the nodes of a cluster, one of which is lost on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

# A process of its own: Ray allows one cluster per process, and this one must not join that of the other tests.
_RUN = """
import json, sys, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from rayrl_dt import OnlineDT, OnlineDTConfig

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
try:
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    config = OnlineDTConfig()
    config.offline_data(dataset=sys.argv[1])
    config.rl_module(model_config={"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 1})
    config.training(gradient_steps_per_iteration=4, train_batch_size_per_learner=8, warmup_steps=6)
    config.evaluation(target_returns="dataset:3", episodes_per_target=2)
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=2)
    config.fault_tolerance(restart_failed_env_runners=True)
    config.online(mode="async", pretrain_steps=4, env_steps=2000, env_steps_per_iteration=200,
                  updates_per_iteration=3, replay_capacity_trajectories=50,
                  max_rounds_ahead=1)  # or a slow driver finds everything collected before the node is lost
    algorithm = config.build_algo()

    def nodes_of_runners():
        manager = algorithm.env_runner_group._worker_manager
        where = lambda _: ray.get_runtime_context().get_node_id()
        found = []
        for runner in manager.healthy_actor_ids():
            try:
                found.append(ray.get(manager.actors()[runner].apply.remote(where), timeout=30))
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                pass  # it was lost, or has just come back
        return found

    begin = nodes_of_runners()
    while algorithm.collected_episodes < 4:
        algorithm.train()
    lost = workers[0]
    before = algorithm.env_steps
    cluster.remove_node(lost, allow_graceful=False)
    while not algorithm.done:
        algorithm.train()
    runners, counts = algorithm.async_runners, algorithm.replay.counts
    totals = runners.streams.values()
    algorithm.save_to_path(sys.argv[2])
    Path(sys.argv[3]).write_text(json.dumps({
        "head": cluster.head_node.node_id,
        "begin": begin, "lost": lost.node_id, "end": nodes_of_runners(),
        "replay": ray.get(algorithm.replay.actor.__ray_call__.remote(
            lambda _: ray.get_runtime_context().get_node_id())),
        "before": before, "env_steps": algorithm.env_steps, "restarts": runners.restarts,
        "brought": [sum(each.episodes for each in totals), sum(each.steps for each in totals)],
        "counted": [algorithm.collected_episodes, algorithm.env_steps],
        "added": counts.added_episodes, "gradient_steps": algorithm.gradient_steps,
        "planned": config.total_gradient_steps,
    }))
    algorithm.stop()
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_a_node_is_lost_and_the_run_finishes(pendulum_data: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"  # Ray's notices go to the output
    command = [sys.executable, "-c", _RUN, pendulum_data, str(tmp_path / "checkpoint"), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(result.read_text())
    # The runners were spread over both workers; the replay is the driver's, where no worker can take it along.
    assert len(set(found["begin"])) == 2 and found["head"] not in found["begin"]
    assert found["lost"] in found["begin"] and found["end"] and found["lost"] not in found["end"]
    assert found["replay"] == found["head"]
    # It went on after the loss, to its last step and update.
    assert found["env_steps"] > found["before"]
    assert found["env_steps"] >= 2000 and found["gradient_steps"] == found["planned"]
    # What the runners say they have brought is what was counted and what the replay took in (8 were logged).
    assert found["brought"] == found["counted"]
    assert found["added"] - 8 == found["counted"][0]
    assert (tmp_path / "checkpoint" / "replay.npz").is_file()
