"""`rayrl-dt data`: what becomes of a data set, and under which name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.cli.data import _train_command
from rayrl_dt.data import sources
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.types import Trajectory

Run = Callable[..., tuple[int, str, str]]


def test_an_import_keeps_scores_and_where_policies_are_evaluated(
    run: Run, make_store: Callable[..., TrajectoryStore], tmp_path: Path
) -> None:
    store = make_store(action_dim=1)
    spec = gym.spec("Pendulum-v1")
    easier = replace(spec, kwargs={"g": 3.0})
    scores = {"ref_min_score": -9.0, "ref_max_score": 4.5}
    store.info = replace(store.info, env_spec=spec, evaluation_spec=easier, metadata=scores)
    typed = ("data", "import", f"store:{store.save(tmp_path / 'mine')}", "--as", "toy/mine-v0")
    status, out, err = run(*typed)
    assert status == 0 and "minari:toy/mine-v0" in out, err
    info = sources.load("minari:toy/mine-v0").info
    assert scores.items() <= info.metadata.items()
    assert info.environment is not None and info.environment.for_evaluation.kwargs == {"g": 3.0}
    status, _, err = run(*typed)
    assert status == 2 and "choose another id or overwrite it" in err
    assert run(*typed, "--overwrite")[0] == 0


def test_what_is_packed_is_not_imported(run: Run, make_store: Any, tmp_path: Path) -> None:
    parts = {"at": gym.spaces.Box(-1, 1, (2,)), "eye": gym.spaces.Box(0, 255, (36, 36), np.uint8)}
    packing = Flattening(gym.spaces.Dict(parts))
    seen = packing.episode({"at": np.zeros((3, 2)), "eye": np.zeros((3, 36, 36), np.uint8)})
    info = replace(make_store().info, observation_space=packing.flat)
    episode = Trajectory(seen, np.zeros((2, 2), np.float32), np.zeros(2), True)
    folder = TrajectoryStore.from_trajectories([episode], info).save(tmp_path / "seen")
    status, _, err = run("data", "import", f"store:{folder}", "--as", "toy/seen-v0")
    assert status == 2 and "holds pictures with numbers beside them" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("minari:mujoco/hopper/medium-v0", "mujoco-hopper-medium-v0"),
        ("mujoco/hopper/medium-v0", "mujoco-hopper-medium-v0"),
        ("d4rl:data/mine.hdf5", "data-mine"),
    ],
)
def test_a_run_is_named_after_its_data(source: str, name: str) -> None:
    assert _train_command(source, known_env=True).endswith(f"--out runs/dt-{name}")
