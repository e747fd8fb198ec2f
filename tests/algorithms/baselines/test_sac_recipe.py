"""The trained recipe, for real but far too short to learn anything."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from rayrl_dt.data import recipes
from rayrl_dt.data.readers import minari_io
from rayrl_dt.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_trains_and_writes_three_data_sets() -> None:
    seen: list[tuple[int, int]] = []
    replay_id = recipes.make(
        "trained",
        env="Pendulum-v1",
        steps=1000,
        episodes=2,
        progress=lambda done, total: seen.append((done, total)),
        overrides={
            "env_runners": {"rollout_fragment_length": 20},
            "training": {"train_batch_size_per_learner": 32},
        },
    )
    assert replay_id == "rayrl_dt/Pendulum-v1/replay-v0"
    assert [each for each in seen if each[0] == each[1]] == [(1000, 1000), (4, 4)], "steps, then rollouts"
    for kind, count in (("replay", 5), ("medium", 2), ("best", 2)):
        trajectories, info = minari_io.read(replay_id.replace("replay", kind))
        assert [len(trajectory) for trajectory in trajectories] == [200] * count
        assert info.env_spec is not None
        assert info.env_spec.id == "Pendulum-v1"
        # In the environment's units, not in those of the policy: torques up to 2.
        torques = np.abs(np.concatenate([trajectory.actions for trajectory in trajectories]))
        assert 1.0 < torques.max() <= 2.0
    shutil.rmtree(minari_io.data_folder(replay_id).parent)
    with pytest.raises(UserError, match="Pendulum-v1/medium-v0, rayrl_dt/Pendulum-v1/best-v0 exist already"):
        recipes.make("trained", env="Pendulum-v1", steps=10)


def test_refuses_discrete_actions_and_odd_ids() -> None:
    with pytest.raises(UserError, match="needs a continuous environment"):
        recipes.make("trained", env="CartPole-v1")
    with pytest.raises(UserError, match="end in replay-v0"):
        recipes.make("trained", env="Pendulum-v1", dataset_id="mine/data-v0")
