"""The trained recipe, for real but far too short to learn anything."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from own_envs import Walk

from rayrl_dt.algorithms.baselines import sac_recipe
from rayrl_dt.data import recipes
from rayrl_dt.data.readers import minari_io
from rayrl_dt.errors import EnvironmentFailed, UserError


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
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


def test_an_environment_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sac_recipe, "LONGEST_EPISODE", 5)
    with pytest.raises(
        UserError, match=r"environment Walk-v0 has run 5 steps and no episode has ended; give it a"
    ):
        sac_recipe._random_rewards("Walk-v0", Walk(), 0)


class _Broken(Walk):
    def step(self, action: Any) -> Any:
        raise ZeroDivisionError("the joint has no length")


def test_what_an_environment_raises_is_told_in_one_line() -> None:
    with pytest.raises(
        EnvironmentFailed, match=r"environment Broken-v0 raised ZeroDivisionError: the joint"
    ) as raised:
        sac_recipe._random_rewards("Broken-v0", _Broken(), 0)
    assert "\n" not in str(raised.value)
