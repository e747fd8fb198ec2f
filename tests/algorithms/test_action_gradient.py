"""Evaluation runners refine actions with the critic of a bundle: up its gradient, or the best of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayrl_dt.critics.training import CriticTraining
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.interop.bundle import save_bundle
from rayrl_dt.interop.critics import add_critic
from rayrl_dt.policy.sampled_actions import SampledActions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
SMALL = CriticTraining(steps=20, batch_size=16, hidden=16)


def returns(config: Any) -> list[float]:
    algorithm = config.evaluation(target_returns="-900", episodes_per_target=2).build_algo()
    try:
        targets = algorithm.evaluate()["alignment"]["targets"]
    finally:
        algorithm.stop()
    return [value for target in targets for value in target["returns"]]


@pytest.fixture
def with_critic(tiny: Callable[..., Any], pendulum_data: str, tmp_path: Path) -> str:
    algorithm = tiny(pendulum_data).build_algo()
    path = save_bundle(algorithm.policy_spec, algorithm.policy_state(), tmp_path / "policy")
    algorithm.stop()
    add_critic(path, training=SMALL)
    return str(path)


def test_evaluations_refine_actions(tiny: Callable[..., Any], pendulum_data: str, with_critic: str) -> None:
    def evaluated(**how: Any) -> list[float]:
        return returns(tiny(pendulum_data).evaluation(**how, critic_from=with_critic))

    plain = returns(tiny(pendulum_data))
    assert evaluated(action_gradient={"n": 0}) == evaluated(sampled_actions=0) == plain
    assert evaluated(action_gradient={"n": 3, "eta": 0.1, "rule": "adam"}) != plain
    sampled = evaluated(sampled_actions={"n": 9, "noise": 0.3})
    # Runners act as `rayrl-dt eval` does: the same weights, episodes and draws.
    options = {"targets": "-900", "episodes_per_target": 2}
    settings = SampledActions(n=9, noise=0.3)
    (alone,) = evaluate_bundle(with_critic, **options, sampled_actions=settings).targets
    assert sampled == list(alone.returns) != plain


def test_a_critic_of_other_data_is_refused(
    tiny: Callable[..., Any], pendulum_data: str, with_critic: str, tmp_path: Path
) -> None:
    from rayrl_dt.data.sources import load

    other = load(pendulum_data)
    half = other.__class__.from_trajectories([other.trajectory(1)], other.info)
    source = f"store:{half.save(tmp_path / 'other')}"
    config = tiny(source).evaluation(action_gradient={"n": 1}, critic_from=with_critic)
    with pytest.raises(UserError, match="another normalizer"):
        returns(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_gradient": {"n": 1}}, "set both or neither"),
        ({"critic_from": "runs/x"}, "set both or neither"),
        ({"action_gradient": {"n": -1}, "critic_from": "runs/x"}, "n is -1"),
        ({"action_gradient": {"rule": "sgd"}, "critic_from": "runs/x"}, "rule is 'sgd'"),
        ({"sampled_actions": 5}, "sampled_actions is 5 .* set both or neither"),
        ({"sampled_actions": -5, "critic_from": "runs/x"}, "n is -5"),
        ({"sampled_actions": {"m": 5}, "critic_from": "runs/x"}, "has no key 'm'"),
        ({"sampled_actions": "many", "critic_from": "runs/x"}, "write how many"),
        ({"sampled_actions": 5, "action_gradient": {"n": 1}, "critic_from": "runs/x"}, "choose one"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(
    tiny: Callable[..., Any], pendulum_data: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny(pendulum_data).evaluation(**options).build_algo()
