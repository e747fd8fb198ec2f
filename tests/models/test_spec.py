from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.types import Trajectory

MakeStore = Callable[..., TrajectoryStore]


def with_info(store: TrajectoryStore, **changes: Any) -> TrajectoryStore:
    return replace(store, info=replace(store.info, **changes))


def assert_same(one: PolicySpec, other: PolicySpec) -> None:
    np.testing.assert_array_equal(one.normalizer.mean, other.normalizer.mean)
    np.testing.assert_array_equal(one.normalizer.std, other.normalizer.std)
    assert other.normalizer.mean.dtype == np.float32
    assert replace(one, normalizer=other.normalizer) == other


@pytest.mark.parametrize("options", [{}, {"actions": 4}, {"actions": 4, "first_action": -9}])
def test_json_round_trip(make_store: MakeStore, options: dict[str, int]) -> None:
    env_spec = EnvSpec("Pendulum-v1", entry_point="a:B", max_episode_steps=200)
    store = with_info(make_store(**options), env_spec=env_spec, metadata={"author": "somebody"})
    spec = PolicySpec.from_store(ModelConfig(dropout=0.25), store, return_scale=None)
    again = PolicySpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert_same(spec, again)
    assert again.head.continuous == (not options)
    assert again.action_size == (4 if options else 2)
    assert again.action_space == store.info.action_space
    assert again.dataset_info.env_spec == env_spec
    assert again.dataset_info.metadata == {"author": "somebody"}


def test_how_it_acts_is_part_of_the_policy(make_store: MakeStore) -> None:
    spec = PolicySpec.from_store(ModelConfig(context_length=6), make_store(actions=4), return_scale=None)
    old = json.loads(json.dumps(spec.to_json()))
    for name in ("acting_context_length", "action_selection"):
        del old[name]
    unknown = PolicySpec.from_json(old)
    assert_same(spec, unknown)
    assert (unknown.acts_on, unknown.action_selection, unknown.samples_actions) == (6, None, True)
    acting = spec.acting(context_length=2, action_selection="mode")
    again = PolicySpec.from_json(json.loads(json.dumps(acting.to_json())))
    assert_same(acting, again)
    assert (again.acts_on, again.samples_actions) == (2, False)
    assert_same(acting, acting.acting(context_length=None, action_selection=None))
    assert acting.acting(context_length=None, action_selection="sample").samples_actions


@pytest.mark.parametrize(
    ("backbone", "acting", "message"),
    [
        ("dt", {"context_length": 0}, "length of 0; use a whole number from 1 to 6"),
        ("dt", {"context_length": 7}, "length of 7; use a whole number from 1 to 6"),
        ("mlp", {"context_length": 5}, "backbone mlp .* length of 5; use a whole number from 6 to 6"),
        ("dt", {"action_selection": "mod"}, "Did you mean 'mode'"),
        ("dt", {"action_selection": "best"}, "Allowed: mode, sample"),
        ("dt", {"action_selection": "sample"}, "actions are continuous"),
    ],
)
def test_ways_to_act_that_a_policy_has_not(
    make_store: MakeStore, backbone: str, acting: dict[str, Any], message: str
) -> None:
    model = ModelConfig(context_length=6, backbone=backbone)
    spec = PolicySpec.from_store(model, make_store(), return_scale=None)
    with pytest.raises(UserError, match=message):
        spec.acting(**{"context_length": None, "action_selection": None, **acting})


def test_autos_are_resolved_from_the_data(make_store: MakeStore) -> None:
    store = make_store(lengths=(3, 7))
    spec = PolicySpec.from_store(ModelConfig(), store, return_scale=None)
    assert (spec.model.head, spec.model.target_rule, spec.model.max_episode_steps) == (
        "deterministic",
        "decrement",
        7,
    )
    assert (spec.action_low, spec.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert spec.env is None
    returns = store.episode_returns
    assert spec.data_returns["p95"] == np.percentile(returns, 95)
    assert (spec.data_returns["min"], spec.data_returns["max"]) == (returns.min(), returns.max())

    delayed = PolicySpec.from_store(ModelConfig(), store.with_delayed_rewards(), return_scale=2.5)
    assert (delayed.model.target_rule, delayed.return_scale) == ("constant", 2.5)
    chosen = ModelConfig(target_rule="decrement", max_episode_steps=3)
    kept = PolicySpec.from_store(chosen, store.with_delayed_rewards(), return_scale=None)
    assert (kept.model.target_rule, kept.model.max_episode_steps) == ("decrement", 3)
    discrete = PolicySpec.from_store(ModelConfig(), make_store(actions=3), return_scale=None)
    assert (discrete.model.head, discrete.action_low) == ("categorical", ())


@pytest.mark.parametrize(("limit", "size"), [(None, 30), (5, 30), (200, 200)])
def test_timestep_table_covers_data_and_environment(
    make_store: MakeStore, limit: int | None, size: int
) -> None:
    store = with_info(make_store(), env_spec=EnvSpec("X-v0", entry_point="a:B", max_episode_steps=limit))
    spec = PolicySpec.from_store(ModelConfig(), store, return_scale=None)
    assert spec.model.max_episode_steps == size
    assert spec.env == store.info.environment and spec.collected_in == store.info.env_spec.to_json()
    pendulum = RecordedEnv.named("Pendulum-v1")
    other = PolicySpec.from_store(ModelConfig(), store, return_scale=None, env=pendulum)
    assert (other.env, other.collected_in) == (pendulum, store.info.env_spec.to_json())


@pytest.mark.parametrize("old", ["Pendulum-v1", gym.spec("Pendulum-v1").to_json(), "no_such_package:Mine-v0"])
def test_policies_of_earlier_formats_know_their_environment(make_store: MakeStore, old: str) -> None:
    spec = PolicySpec.from_store(ModelConfig(), make_store(), return_scale=None)
    env = PolicySpec.from_json({**spec.to_json(), "env": old}).env
    assert env is not None and not env.trusted
    if "Pendulum" in old:
        assert env.make().spec.max_episode_steps == 200
    else:
        with pytest.raises(UserError, match="no_such_package"):
            env.make()


@pytest.mark.parametrize(
    ("returns", "scale"),
    [
        ([0.0, 0.0], 1.0),
        ([0.0, 1.0], 0.25),
        ([-1.0, 9.75], 2.4375),
        ([-1900.0, -2.0], 475.0),
        ([0.03125, 0.0], 0.0078125),
    ],
)
def test_return_scale_is_a_quarter_of_the_largest_return(returns: list[float], scale: float) -> None:
    space = gym.spaces.Box(-1, 1, (1,), np.float32)
    episodes = [
        Trajectory(
            np.zeros((2, 1), np.float32), np.zeros((1, 1), np.float32), np.array([value]), terminated=True
        )
        for value in returns
    ]
    store = TrajectoryStore.from_trajectories(episodes, DatasetInfo("test", space, space))
    assert PolicySpec.from_store(ModelConfig(), store, return_scale=None).return_scale == scale


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_return_scale(make_store: MakeStore, scale: float) -> None:
    with pytest.raises(UserError, match="return_scale"):
        PolicySpec.from_store(ModelConfig(), make_store(), return_scale=scale)


def test_unbounded_actions_take_the_range_of_the_data(make_store: MakeStore) -> None:
    store = make_store()
    space = gym.spaces.Box(np.array([-np.inf, -2], np.float32), np.array([np.inf, np.inf], np.float32))
    spec = PolicySpec.from_store(ModelConfig(), with_info(store, action_space=space), return_scale=None)
    actions = store.actions
    assert spec.action_low == (actions[:, 0].min(), -2.0)
    assert spec.action_high == (actions[:, 0].max(), actions[:, 1].max())
    flat = replace(store, actions=np.full_like(actions, 0.5))
    spec = PolicySpec.from_store(ModelConfig(), with_info(flat, action_space=space), return_scale=None)
    assert spec.action_low[0] < spec.action_high[0], "the width of the range must not vanish"


def test_head_must_fit_the_actions(make_store: MakeStore) -> None:
    with pytest.raises(UserError, match=r"head is 'categorical'.*'deterministic'"):
        PolicySpec.from_store(ModelConfig(head="categorical"), make_store(), return_scale=None)
    with pytest.raises(UserError, match=r"head is 'deterministic'.*'categorical'"):
        PolicySpec.from_store(ModelConfig(head="deterministic"), make_store(actions=3), return_scale=None)


def test_actions_with_two_axes_are_refused(make_store: MakeStore) -> None:
    store = with_info(make_store(), action_space=gym.spaces.Box(-1, 1, (2, 2), np.float32))
    with pytest.raises(UserError, match=r"\(2, 2\)"):
        PolicySpec.from_store(ModelConfig(), store, return_scale=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "no_return"}, "backbone is 'no_return'.*Did you mean 'no-return'"),
        (
            {"backbone": "gpt2"},
            "backbone.*Allowed: convformer, decoupled, dt, mlp, no-return, radt, reinformer, starformer",
        ),
        ({"head": "determinstic"}, "Did you mean 'deterministic'"),
        ({"target_rule": "decrementing"}, "Did you mean 'decrement'"),
        ({"activation": "gelu_new"}, "Did you mean 'gelu'"),
        ({"context_length": 0}, "context_length is 0.*at least 1"),
        ({"num_layers": 1.5}, "num_layers is 1.5"),
        ({"embed_dim": "128"}, "embed_dim is '128'"),
        ({"num_heads": -1}, "num_heads is -1"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"max_episode_steps": "many"}, "max_episode_steps is 'many'"),
        ({"timestep_embedding": "off"}, "timestep_embedding is 'off'.*auto, learned, none"),
        ({"timestep_embedding": None}, "timestep_embedding is None. Did you mean 'none'"),
        (
            {"backbone": "radt", "timestep_embedding": "none"},
            "'none' is for backbones dt, convformer, reinformer, no-return, decoupled, not 'radt'; remove it",
        ),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": "0.1"}, "dropout is '0.1'"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"embed_dim": 10, "num_heads": 4}, "10 is not a multiple of num_heads 4"),
        ({"backbone": "convformer", "conv_window": 0}, "conv_window is 0.*at least 1"),
        ({"backbone": "convformer", "conv_window": 2.5}, "conv_window is 2.5.*whole number"),
        ({"backbone": "starformer", "local_dim": "16"}, "local_dim is '16'.*whole number"),
        ({"backbone": "starformer", "local_heads": -4}, "local_heads is -4.*at least 1"),
        ({"backbone": "starformer", "local_dim": 10}, "local_dim 10 is not a multiple of local_heads 4"),
        (
            {"backbone": "dt", "conv_window": 3},
            "conv_window 3 is for backbone 'convformer', not 'dt'; remove",
        ),
        ({"backbone": "starformer", "conv_window": 3}, "is for backbone 'convformer', not 'starformer'"),
        ({"backbone": "convformer", "local_dim": 8}, "local_dim 8 is for backbone 'starformer'"),
        ({"backbone": "radt", "local_heads": 2}, "local_heads 2 is for backbone 'starformer', not 'radt'"),
        ({"backbone": "convformer", "norm": "pre"}, "norm 'pre' is for backbone 'radt', not 'convformer'"),
        (
            {"target_rule": "predicted"},
            "'predicted' needs backbone 'reinformer': 'dt' predicts no returns; choose",
        ),
        ({"context_rule": "newest"}, "context_rule 'newest' is for backbone 'reinformer', not 'dt'; remove"),
        ({"backbone": "reinformer", "context_rule": "elastc"}, "Did you mean 'elastic'"),
        ({"backbone": "reinformer", "shared_networks": 1}, "shared_networks is 1; it must be true or false"),
        (
            {"backbone": "reinformer", "return_expectile": 1.0},
            r"return_expectile is 1.0.*above 0 and below 1",
        ),
        ({"backbone": "reinformer", "return_expectile": "0.9"}, "return_expectile is '0.9'"),
        ({"backbone": "reinformer", "return_expectile": float("nan")}, "return_expectile is nan"),
        (
            {"backbone": "reinformer", "target_rule": "decrement", "context_rule": "whole"},
            "context_rule 'whole' compares predicted returns, and target_rule is 'decrement'; remove it",
        ),
    ],
)
def test_bad_choices_name_the_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ModelConfig.from_dict(values)
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no key 'contxt_length'.*Did you mean 'context_length'"):
        ModelConfig.from_dict({"contxt_length": 5})


@pytest.mark.parametrize(
    ("backbone", "activation"),
    [
        ("dt", "relu"),
        ("radt", "gelu"),
        ("convformer", "gelu"),
        ("starformer", "gelu"),
        ("reinformer", "gelu"),
        ("no-return", "relu"),
        ("mlp", "relu"),
    ],
)
def test_activation_is_that_of_the_backbones_authors(backbone: str, activation: str) -> None:
    assert backbone in BACKBONES
    resolved = ModelConfig(backbone=backbone).resolved()
    assert resolved.activation == activation
    assert ModelConfig(backbone=backbone, activation="relu").resolved().activation == "relu"


def test_defaults_are_valid() -> None:
    ModelConfig()
    ModelConfig(dropout=0, max_episode_steps=1, context_length=1)
