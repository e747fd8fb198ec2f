"""A run whose learner and runners are in its own process starts no Ray, and learns what it learns beside one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import ONLINE
from safetensors.numpy import load_file
from small_runs import values

from rayrl_dt import OnlineDTConfig
from rayrl_dt.runs.loop import train

# In a process of its own, as others have started a Ray in this one.
ALONE = """
import json, sys
from pathlib import Path
import ray
from small_runs import StopAt
from rayrl_dt.runs.loop import train

values, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
assert not train(values, folder, observer=StopAt(6)).finished
assert train(values, folder, resume=True).finished
print("Ray" if ray.is_initialized() else "no Ray")
"""


def online(dataset: str) -> dict[str, Any]:
    """Two rounds after a pretraining of eight steps."""
    shared = {key: value for key, value in values(dataset).items() if key != "training"}
    training = {"gradient_steps_per_iteration": 4, "train_batch_size_per_learner": 8}
    return {
        **shared,
        "algorithm": "OnlineDT",
        "training": training,
        "online": {**ONLINE, "pretrain_steps": 8},
    }


@pytest.mark.ray
@pytest.mark.parametrize("make", [values, online])
def test_a_run_with_nothing_remote_needs_no_ray(
    ray_session: None, pendulum_data: str, tmp_path: Path, make: Any
) -> None:
    settings = make(pendulum_data)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", ALONE, json.dumps(settings), str(tmp_path / "alone")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout.split("\n")[-2] == "no Ray", ended.stderr[-2000:]
    train(settings, tmp_path / "beside")
    alone, beside = (
        load_file(tmp_path / folder / "policy" / "policy.safetensors") for folder in ("alone", "beside")
    )
    assert alone.keys() == beside.keys() and all(np.array_equal(alone[name], beside[name]) for name in alone)


@pytest.mark.ray
def test_a_runner_loads_only_what_it_acts_with_and_is_deterministic(
    ray_session: None, pendulum_data: str
) -> None:
    def loaded(runner: Any) -> tuple[set[str], bool]:
        import torch

        heavy = {"torch._inductor", "sympy", "scipy.stats", "scipy.optimize", "matplotlib"}
        return heavy & sys.modules.keys(), torch.are_deterministic_algorithms_enabled()

    config = OnlineDTConfig().offline_data(dataset=pendulum_data).debugging(seed=0)
    algorithm = config.env_runners(num_env_runners=1).build_algo()
    try:
        found = algorithm.env_runner_group.foreach_env_runner(loaded, local_env_runner=False)
    finally:
        algorithm.stop()
    assert found == [(set(), True)]
