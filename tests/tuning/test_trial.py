"""What a trial takes over from the checkpoint of another one: everything but what its own config sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import store_for

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.tuning.space import replaced
from rayrl_dt.tuning.trial import SweepTrial

pytestmark = pytest.mark.ray

MODEL = {"context_length": 3, "embed_dim": 8, "num_layers": 1, "num_heads": 1}
ONLINE = {"pretrain_steps": 2, "critic_width": 8}
CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[str, str]]]] = {
    "imitation": (
        {"algorithm": "DT"},
        {
            "training.lr": ("default_optimizer", "lr"),
            "training.weight_decay": ("default_optimizer", "weight_decay"),
        },
    ),
    "td3": (
        {"algorithm": "OnlineDT", "online": ONLINE},
        {
            "training.lr": ("policy", "lr"),
            "training.weight_decay": ("policy", "weight_decay"),
            "online.critic_lr": ("critic", "lr"),
            "online.critic_weight_decay": ("critic", "weight_decay"),
        },
    ),
    "odt": (
        {
            "algorithm": "OnlineDT",
            "online": {"pretrain_steps": 2, "rl_gradient": "none"},
            "rl_module": {"model_config": {**MODEL, "head": "gaussian"}},
        },
        {"online.temperature_lr": ("temperature", "lr")},
    ),
}
"""Configs, and of the keys that PBT may change the optimizer and what of it they set."""


@pytest.fixture
def values(ray_session: None, tmp_path: Path) -> dict[str, Any]:
    env = gym.make("Pendulum-v1")
    info = DatasetInfo("test", env.observation_space, env.action_space, env.spec)
    store = store_for(env)
    episodes = [store.trajectory(number) for number in range(store.num_episodes)]
    TrajectoryStore.from_trajectories(episodes, info).save(tmp_path / "store")
    return {
        "offline_data": {"dataset": f"store:{tmp_path / 'store'}"},
        "rl_module": {"model_config": MODEL},
        "training": {
            "gradient_steps_per_iteration": 2,
            "train_batch_size_per_learner": 4,
            "warmup_steps": 0,
        },
    }


def optimizers(trial: SweepTrial) -> dict[str, torch.optim.Optimizer]:
    learner = trial.algorithm.learner_group._learner
    found = learner.get_optimizers_for_module("default_policy")
    return {name.removeprefix("default_policy_"): optimizer for name, optimizer in found}


@pytest.mark.parametrize("case", CASES)
def test_an_exploit_takes_over_moments_and_keeps_what_its_own_config_sets(
    case: str, values: dict[str, Any], tmp_path: Path
) -> None:
    chosen, keys = CASES[case]
    donor = SweepTrial(replaced({**values, **chosen}, dict.fromkeys(keys, 0.25)))
    donor.algorithm.train()
    donor.save_checkpoint(str(tmp_path / "donor"))
    heir = SweepTrial(replaced({**values, **chosen}, dict.fromkeys(keys, 0.125)))
    heir.load_checkpoint(str(tmp_path / "donor"))
    for key, (name, setting) in keys.items():
        one, other = optimizers(donor)[name], optimizers(heir)[name]
        assert {group[setting] for group in one.param_groups} == {0.25}, key
        assert {group[setting] for group in other.param_groups} == {0.125}, key
        moments = [next(iter(each.state.values()))["exp_avg_sq"] for each in (one, other)]
        np.testing.assert_array_equal(*moments)
        assert moments[0].abs().sum() > 0, key
    # What its next reports are of is what they say.
    learned = heir.algorithm.train()["learners"]["default_policy"]
    assert learned["lr"] == (0.125 if "training.lr" in keys else heir.algorithm.config.lr)
    for key, (name, setting) in keys.items():
        assert {group[setting] for group in optimizers(heir)[name].param_groups} == {0.125}, key
    for trial in (donor, heir):
        trial.stop()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("online.critic_width", 16),
        ("online.reward_scale", 100.0),
        ("rl_module.model_config.embed_dim", 16),
    ],
)
def test_weights_of_other_shapes_or_scales_are_refused(
    key: str, value: Any, values: dict[str, Any], tmp_path: Path
) -> None:
    values = {**values, "algorithm": "OnlineDT", "online": ONLINE}
    donor = SweepTrial(values)
    donor.save_checkpoint(str(tmp_path / "donor"))
    heir = SweepTrial(replaced(values, {key: value}))
    with pytest.raises(UserError, match=rf"{key.removeprefix('rl_module.')} is .*, and .* learned with"):
        heir.load_checkpoint(str(tmp_path / "donor"))
    for trial in (donor, heir):
        trial.stop()
