"""Alignment from data alone: the estimate on a toy whose every return is known, and what is made of estimates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, store_for
from torch import Tensor

from rayrl_dt.data import windows
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.experiments import align_offline
from rayrl_dt.experiments.align_offline import Outcome, judge
from rayrl_dt.experiments.return_evaluation import estimate, fit_evaluation
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor
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

    def forward(self, window: Window[Tensor], *, last_only: bool = False) -> Tensor:
        return (self.share * window.returns_to_go).clamp(-1, 1)


def follower(store: TrajectoryStore, context_length: int) -> Follower:
    return Follower(build_model(store, context_length=context_length, target_rule="decrement").spec)


@pytest.mark.slow
@pytest.mark.parametrize("context_length", [1, 3])
def test_it_tells_what_an_obedient_policy_misses(context_length: int) -> None:
    store = toy()
    found = fit_evaluation(follower(store, context_length), store, TARGETS, steps=1_000)
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


def test_it_is_of_the_policy_as_it_acts() -> None:
    store = toy()
    model = build_model(store, target_rule="decrement", return_dropout=0.2, context_length=3)
    model.spec = model.spec.acting(context_length=2, action_selection=None, guidance=2.5)
    seen = set()
    model.trunk.register_forward_pre_hook(lambda _, read: seen.add(read[0].timesteps.shape[1]))
    found = fit_evaluation(model, store, TARGETS, steps=1)
    assert seen == {2}
    first = np.zeros(1, np.int64)
    window = windows.gather(store, first, first, 1).to_torch()
    actor, target = VectorActor(model, 1), np.array([1.5])
    taken = actor.act(window.observations[:, 0].numpy(), np.zeros(1), np.ones(1, bool), target)
    acts = found.acts(window, torch.full((1, 1, 1), 1.5))[:, 0]
    np.testing.assert_allclose(model.to_env_actions(acts), taken, atol=1e-5)


@pytest.mark.parametrize("config", [{"backbone": "mlp"}, {"target_rule": "constant"}])
def test_policies_that_it_does_not_know_are_refused(config: dict[str, Any]) -> None:
    store = toy()
    with pytest.raises(UserError, match="cannot be estimated"):
        fit_evaluation(build_model(store, **config), store, TARGETS, steps=1)


def test_one_target_alone_is_refused() -> None:
    store = toy()
    with pytest.raises(UserError, match=r"asked for 3 alone cannot be estimated.* of toy coincide"):
        fit_evaluation(build_model(store, target_rule="decrement"), store, (3.0, 3.0), steps=1)


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_the_verdict_is_by_how_much_less_it_misses_than_guesses_do() -> None:
    def outcome(achieved: tuple[float, ...], wrong: float) -> Outcome:
        return Outcome((0.0, 10.0), tuple(value + wrong for value in achieved), achieved, mean=5.0)

    good = {"a": outcome((4.0, 6.0), 0.2), "b": outcome((1.0, 9.0), -0.1), "c": outcome((2.0, 7.0), 0.1)}
    found = judge(good)
    assert found["holds"] and found["order_of_policies"] == pytest.approx(1.0)
    assert found["miss"] == pytest.approx(0.4 / 3) and found["miss_of_the_target"] == pytest.approx(7.5 / 3)
    assert found["miss_of_the_mean"] == pytest.approx((1.0 + 4.0 + 2.5) / 3)
    far = {name: replace(each, estimated=tuple(v + 3 for v in each.estimated)) for name, each in good.items()}
    assert not judge(far)["holds"]
    alone = judge({"a": good["a"]})
    assert alone["holds"] and alone["order_of_policies"] is None
    alike = judge({"a": good["a"], "b": good["a"]})
    assert np.isnan(alike["order_of_policies"]) and not alike["holds"]


@pytest.mark.slow
def test_small_policies_are_judged_in_a_real_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = gym.make("Pendulum-v1")
    made = store_for(env, episodes=8, steps=200)
    info = DatasetInfo("test", env.observation_space, env.action_space, env.spec)
    episodes = [made.trajectory(number) for number in range(made.num_episodes)]
    TrajectoryStore.from_trajectories(episodes, info).save(tmp_path / "data")
    monkeypatch.setattr(align_offline, "POLICIES", {"DT": ("dt", 1.0), "decoupled": ("decoupled", 0.5)})
    result = align_offline.run(tmp_path / "page", steps=2, episodes=1, dataset=f"store:{tmp_path / 'data'}")
    assert list(result["policies"]) == ["DT", "decoupled"]
    for row in result["policies"].values():
        assert len(row["targets"]) == len(row["estimated"]) == len(row["achieved"]) == 7
    assert [row["gradient_steps"] for row in result["policies"].values()] == [2, 1]
    assert (tmp_path / "page" / "report.html").is_file()
