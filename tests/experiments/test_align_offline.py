"""Alignment from data alone: the estimate on a toy whose every return is known, and what is made of estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, store_for
from torch import Tensor

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.experiments import align_offline
from rayrl_dt.experiments.align_offline import Outcome, judge
from rayrl_dt.experiments.return_evaluation import estimate, fit_evaluation
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Trajectory, Window

HORIZON, TARGETS = 5, (-2.0, 0.0, 2.0)


def toy() -> TrajectoryStore:
    """Random walks of five steps: an action in [-1, 1] is its own reward, and is added to the state."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(200):
        actions = rng.uniform(-1, 1, (HORIZON, 1)).astype(np.float32)
        places = np.concatenate([np.zeros((1, 1)), actions.cumsum(0)]).astype(np.float32)
        episodes.append(Trajectory(places, actions, actions[:, 0], terminated=False))
    info = DatasetInfo(
        "toy", gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)
    )
    return TrajectoryStore.from_trajectories(episodes, info)


class Follower(SequenceModel):
    """Takes a share of what is left of its return: obedient in part, and easy to follow by hand."""

    share = 0.4

    def outputs_for(
        self, window: Window[Tensor], returns_to_go: Tensor, *, last_only: bool = False
    ) -> Tensor:
        return (self.share * returns_to_go).clamp(-1, 1)


def follower(store: TrajectoryStore) -> Follower:
    return Follower(build_model(store, context_length=3, target_rule="decrement").spec)


@pytest.mark.slow
def test_it_tells_what_an_obedient_policy_misses() -> None:
    store = toy()
    found = fit_evaluation(follower(store), store, TARGETS, steps=1_500)
    for target, told in zip(TARGETS, estimate(found, store, TARGETS), strict=True):
        left = target
        for _ in range(HORIZON):
            left -= float(np.clip(Follower.share * left, -1, 1))
        assert abs(told - (target - left)) < 0.1
        assert abs(left) > 0.1 or target == 0


def test_it_is_a_function_of_its_seed_and_leaves_the_policy_alone() -> None:
    store = toy()
    model = build_model(store, target_rule="decrement")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = [
        estimate(fit_evaluation(model, store, TARGETS, steps=5, seed=seed), store, TARGETS)
        for seed in (1, 1, 2)
    ]
    assert told[0] == told[1] != told[2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("config", [{"backbone": "mlp"}, {"target_rule": "constant"}])
def test_policies_that_it_does_not_know_are_refused(config: dict[str, Any]) -> None:
    store = toy()
    with pytest.raises(UserError, match="cannot be estimated"):
        fit_evaluation(build_model(store, **config), store, TARGETS, steps=1)


def test_the_verdict_is_by_how_much_less_it_misses_than_guesses_do() -> None:
    def outcome(achieved: tuple[float, ...], wrong: float) -> Outcome:
        return Outcome((0.0, 10.0), tuple(value + wrong for value in achieved), achieved)

    good = {"a": outcome((4.0, 6.0), 0.2), "b": outcome((1.0, 9.0), -0.1), "c": outcome((2.0, 7.0), 0.1)}
    found = judge(good, mean=5.0)
    assert found["holds"] and found["order_of_policies"] == pytest.approx(1.0)
    assert found["miss"] == pytest.approx(0.4 / 3) and found["miss_of_the_target"] == pytest.approx(7.5 / 3)
    assert found["miss_of_the_mean"] == pytest.approx((1.0 + 4.0 + 2.5) / 3)
    far = {
        name: Outcome(each.targets, tuple(v + 3 for v in each.estimated), each.achieved)
        for name, each in good.items()
    }
    assert not judge(far, mean=5.0)["holds"]


@pytest.mark.slow
def test_small_policies_are_judged_in_a_real_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = gym.make("Pendulum-v1")
    made = store_for(env, episodes=8, steps=200)
    info = DatasetInfo("test", env.observation_space, env.action_space, env.spec)
    episodes = [made.trajectory(number) for number in range(made.num_episodes)]
    TrajectoryStore.from_trajectories(episodes, info).save(tmp_path / "data")
    monkeypatch.setattr(align_offline, "POLICIES", {"DT": ("dt", 1.0), "decoupled": ("decoupled", 1.0)})
    result = align_offline.run(tmp_path / "page", steps=2, episodes=1, dataset=f"store:{tmp_path / 'data'}")
    assert list(result["policies"]) == ["DT", "decoupled"]
    for row in result["policies"].values():
        assert len(row["targets"]) == len(row["estimated"]) == len(row["achieved"]) == 7
    assert (tmp_path / "page" / "report.html").is_file()
