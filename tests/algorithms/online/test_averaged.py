"""What is evaluated and exported while finetuning: the policy, or an average of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrl_dt import OnlineDT, OnlineDTConfig, UserError
from rayrl_dt.interop.bundle import Bundle

SMALL = {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 2}
SETTINGS = {"pretrain_steps": 2, "env_steps": 600, "env_steps_per_iteration": 200, "critic_width": 8}


def configure(data: str, *, head: str = "auto", **online: Any) -> OnlineDTConfig:
    config = OnlineDTConfig().offline_data(dataset=data).rl_module(model_config={**SMALL, "head": head})
    config.training(train_batch_size_per_learner=8, warmup_steps=3, lr=1e-2, precision="fp32")
    config.evaluation(target_returns="dataset:2", episodes_per_target=1)
    return config.online(**{**SETTINGS, "updates_per_iteration": 3, "averaged_share": 0.6, **online})


def weights_of(algorithm: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The policy's and the average's, from the learner."""
    every = algorithm.learner_group.get_weights()["default_policy"]
    policy, averaged = (
        {name.removeprefix(start): value for name, value in every.items() if name.startswith(start)}
        for start in ("model.", "averaged_model.")
    )
    return policy, averaged


def numbers(model: Any) -> dict[str, Any]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(np.array_equal(value, other[name]) for name, value in one.items())


@pytest.mark.ray
@pytest.mark.parametrize(
    "settings", [{}, {"rl_gradient": "none", "head": "gaussian"}], ids=["td3", "none, without other company"]
)
def test_an_average_is_evaluated_and_the_policy_collects(
    ray_session: None, pendulum_data: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    algorithm = configure(pendulum_data, **settings).build_algo()
    algorithm.train()
    assert algorithm.gradient_steps == 2
    assert equal(*weights_of(algorithm)), "what is evaluated at the switch is what finetuning begins with"
    algorithm.train()
    policy, averaged = weights_of(algorithm)
    assert not equal(policy, averaged)
    algorithm.evaluate()
    evaluating = algorithm.eval_env_runner_group or algorithm.env_runner_group
    assert equal(numbers(evaluating.local_env_runner.module.model), averaged)
    algorithm.save_to_path(str(tmp_path / "saved"))
    assert equal(numbers(Bundle.open(tmp_path / "saved").model), averaged)
    algorithm._collect(algorithm.replay)
    assert equal(numbers(algorithm.env_runner_group.local_env_runner.module.model), policy)
    algorithm.stop()
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "saved"))
    for one, other in zip(weights_of(resumed), (policy, averaged), strict=True):
        assert equal(one, other)
    resumed.stop()


@pytest.mark.ray
def test_a_policy_that_is_started_from_is_what_is_evaluated_first(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    algorithm = configure(pendulum_data).build_algo()
    algorithm.train()
    algorithm.save_to_path(str(tmp_path / "saved"))
    algorithm.stop()
    config = OnlineDTConfig().offline_data(dataset=pendulum_data).evaluation(target_returns="dataset:2")
    config.online(**{**SETTINGS, "pretrain_steps": 0}, start_from=str(tmp_path / "saved"), averaged_share=0.1)
    started = config.build_algo()
    taken = numbers(Bundle.open(tmp_path / "saved").model)
    assert all(equal(weights, taken) for weights in weights_of(started))
    started.stop()


@pytest.mark.ray
def test_remote_runners_do_alike(ray_session: None, pendulum_data: str) -> None:
    """Evaluations on the runners that collect, too: the same returns as in one process, and the same weights."""
    found = []
    for runners in (0, 1):
        config = configure(pendulum_data, polyak=0.5).env_runners(num_env_runners=runners)
        algorithm = config.evaluation(evaluation_interval=1).build_algo()
        results = []
        while not algorithm.done:
            results.append(algorithm.train())
        returns = [result["evaluation"]["return_mean"] for result in results]
        found.append((returns, weights_of(algorithm)))
        algorithm.stop()
    (one, one_weights), (other, other_weights) = found
    assert len(one) > 3 and one == other
    assert all(equal(*pair) for pair in zip(one_weights, other_weights, strict=True))


@pytest.mark.ray
@pytest.mark.parametrize("interval", [1, 2])
def test_it_is_a_mean_over_the_last_share_of_the_steps(
    ray_session: None, pendulum_data: str, interval: int
) -> None:
    settings = {"averaged_share": 0.6, "actor_interval": interval, "updates_per_iteration": interval}
    algorithm = configure(pendulum_data, **settings).build_algo()
    algorithm.train()
    steps, found = [], []
    while not algorithm.done:  # a round is a step of the policy
        algorithm.train()
        policy, averaged = weights_of(algorithm)
        steps.append(policy)
        found.append(averaged)
    algorithm.stop()
    assert len(steps) == 3
    for name, first in steps[0].items():
        second = first + (steps[1][name] - first) / (0.6 * 2)
        third = second + (steps[2][name] - second) / (0.6 * 3)
        for weights, expected in zip(found, (first, second, third), strict=True):
            np.testing.assert_allclose(weights[name], expected, rtol=1e-5, atol=1e-7)
    assert not equal(steps[0], steps[1])


@pytest.mark.ray
def test_a_run_without_an_average_does_not_go_on_with_one(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    algorithm = configure(pendulum_data, averaged_share=None).build_algo()
    algorithm.train()
    algorithm.save_to_path(str(tmp_path / "saved"))
    algorithm.stop()
    averaging = configure(pendulum_data).build_algo()
    with pytest.raises(UserError, match=r"averaged_share is True, .* learned with False"):
        averaging.restore_from_path(str(tmp_path / "saved"))
    averaging.stop()
