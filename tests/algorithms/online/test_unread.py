"""What is chosen for another mode, gradient, law of targets or head is refused, with what would read it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from rayrl_dt.algorithms.online.algorithm import OnlineDTConfig
from rayrl_dt.errors import UserError
from rayrl_dt.objectives.rl_gradients import RL_GRADIENTS, gradient_settings

OTHERS: dict[str, Any] = {
    "gradient_returns": "target",
    "critic_layer_norm": True,
    "normalize_q": True,
    "polyak": 0.5,
    "entropy_in_targets": False,
    "reward_scale": 3.0,
    "order_low": -3.0,
    "order_high": 3.0,
    "alpha_pretrain": 0.5,
    "order_weight": 0.5,
    "order_shift": 0.5,
    "gamma": 0.5,
}
"""A value beside the default, where a whole number is none."""
GIVEN = {each.name: each.default for group in gradient_settings() for each in fields(group)}


def config(**online: Any) -> OnlineDTConfig:
    settings = OnlineDTConfig().offline_data(dataset="recipe:pendulum-mixed").online(**online)
    if online.get("rl_gradient") == "sac":
        settings.rl_module(model_config={"head": "gaussian"})
    return settings.training(train_batch_size_per_learner=60)


@pytest.mark.parametrize("name", GIVEN)
def test_a_gradient_refuses_what_others_read_alone(name: str) -> None:
    """And takes what it reads; `none` takes all, so that a comparison without critics takes one word."""
    value = OTHERS.get(name, 3)
    assert value != GIVEN[name]
    readers = {
        kind
        for kind, gradient in RL_GRADIENTS.items()
        if name in {each.name for each in fields(gradient.reads)}
    }
    for kind in RL_GRADIENTS:
        beside = {"critic_ensemble": 3} if name == "critic_subset" else {}
        given = config(rl_gradient=kind, **beside, **{name: value})
        if kind in {*readers, "none"}:
            given.validate()
            continue
        with pytest.raises(
            UserError, match=f"online.{name} is .* nothing reads it with .*: {kind}; "
        ) as refused:
            given.validate()
        assert str(refused.value).rpartition(" ")[2] in readers


@pytest.mark.parametrize(
    ("online", "message"),
    [
        ({"max_policy_lag": 3}, "max_policy_lag is 3, and .* online.mode: sync, .* set mode: async"),
        ({"max_rounds_ahead": 1}, "max_rounds_ahead is 1, and .* online.mode: sync"),
        ({"exploration_margin": 0.2}, "exploration_margin is 0.2, and .* exploration_targets: constant"),
        ({"exploration_quantile": 0.2}, "exploration_quantile is 0.2, and .* exploration_targets: constant"),
        (
            {"exploration_quantile": 0.2, "exploration_targets": "best"},
            "exploration_quantile is 0.2, and .* exploration_targets: best; .* set exploration_targets: quantiles",
        ),
    ],
)
def test_modes_and_laws_refuse_what_others_read(online: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**online).validate()


@pytest.mark.parametrize(
    "online",
    [
        {"exploration_targets": "best", "exploration_margin": 0.2},
        {"exploration_targets": "quantiles", "exploration_margin": 0.2, "exploration_quantile": 0.2},
        {"mode": "async", "max_policy_lag": 3, "max_rounds_ahead": 1},
    ],
)
def test_what_reads_them_takes_them(online: dict[str, Any]) -> None:
    config(**online).env_runners(num_env_runners=1).validate()


@pytest.mark.parametrize(
    ("dataset", "head", "online", "message"),
    [
        (
            "pendulum",
            "gaussian",
            {"exploration_noise": 0.2},
            "gaussian; remove it, or set head: deterministic$",
        ),
        ("pendulum", "auto", {"temperature_lr": 0.2}, "deterministic; remove it, or set head: gaussian$"),
        ("pendulum", "auto", {"initial_temperature": 0.2}, "deterministic; .* set head: gaussian$"),
        ("cartpole", "auto", {"exploration_noise": 0.2}, "categorical; remove it$"),
        ("cartpole", "auto", {"temperature_lr": 0.2}, "categorical; remove it$"),
    ],
)
def test_heads_refuse_what_others_read(
    pendulum_data: str, cartpole_data: str, dataset: str, head: str, online: dict[str, Any], message: str
) -> None:
    data = {"pendulum": pendulum_data, "cartpole": cartpole_data}[dataset]
    config = OnlineDTConfig().offline_data(dataset=data).online(rl_gradient="none", **online)
    name = next(iter(online))
    with pytest.raises(UserError, match=f"online.{name} is 0.2, and nothing reads it with .*head: {message}"):
        config.rl_module(model_config={"head": head}).build_algo()
