"""A key of a config file is one field: builders, attributes, files and the reference say the same, and nothing else."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from builders import store_for
from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE, AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID

from rayrl_dt import DTConfig, OnlineDTConfig, UserError
from rayrl_dt.algorithms import rllib_keys
from rayrl_dt.algorithms.builders import RENAMED
from rayrl_dt.cli.config_reference import reference
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.runs.config_files import ALGORITHMS, SECTIONS, apply_overrides, build_config, read_yaml
from rayrl_dt.settings import attribute_of, described, whole_value

DATA = {"offline_data": {"dataset": "recipe:pendulum-mixed"}}


def build(algorithm: str, *overrides: str) -> Any:
    return build_config(apply_overrides({"algorithm": algorithm, **DATA}, overrides))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_is_a_field_a_keyword_an_attribute_and_a_line_of_the_reference(algorithm: str) -> None:
    config: Any = ALGORITHMS[algorithm]()
    listed = {section.name: {key.name: key for key in section.keys} for section in reference(algorithm)}
    attributes: list[str] = []
    for section in config.sections():
        parts = [part for part in config.parts if part.section == section]
        own = {each.name: each for part in parts for each in fields(part)}
        hidden = {name for name in own if f"{section}.{name}" in config.derived}
        accepted = inspect.signature(getattr(config, section)).parameters
        assert set(accepted) == (set(own) - hidden) | set(rllib_keys.READ.get(section, ()))
        assert set(accepted) == set(config.keywords(section)) == set(listed[section])
        assert set().union(*(described(part) for part in parts)) == set(own), "every field has its doc"
        for name in set(own) - hidden:
            assert f"    {name}: " in getattr(config, section).__doc__
            assert listed[section][name].ours and listed[section][name].description
            marker = object()
            changed = getattr(ALGORITHMS[algorithm](), section)(**{name: marker})
            assert getattr(changed, attribute_of(own[name])) is marker
        attributes += [attribute_of(each) for each in own.values()]
    assert len(attributes) == len(set(attributes)), "no key overwrites another"
    assert sorted(config.sections()) == sorted(name for name in listed if name != "tune")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_config_survives_the_ways_of_ray(algorithm: str) -> None:
    """As Tune hands it over, and as a checkpoint keeps it."""
    config = build(algorithm, "debugging.seed=3", "training.lr=2e-4")
    other: Any = ALGORITHMS[algorithm]()
    assert other.update_from_dict(config.to_dict()).to_dict() == config.to_dict()
    kept = type(config).from_state(config.get_state())
    assert kept.to_dict() == {**config.to_dict(), "class": type(config)}  # RLlib leaves the class in it
    assert kept.algo_class is config.algo_class and config.get_evaluation_config_object().lr == 2e-4


@pytest.mark.parametrize("value", [-1, -1.0])
def test_a_value_of_minus_one_is_kept(value: float) -> None:
    """RLlib takes -1 for a key that it has given up, and would leave it out of every state."""
    config = build("OnlineDT", f"offline_data.below_return={value}", f"online.exploration_target={value}")
    config.evaluation(target_returns=value)
    kept = type(config).from_state(config.get_state())
    assert (kept.below_return, kept.exploration_target, kept.target_returns) == (value, value, value)
    for key in ("debugging.seed", "training.grad_clip", "online.alpha", "evaluation.evaluation_interval"):
        with pytest.raises(UserError, match=rf"{key} is -1.*it must be"):
            build("OnlineDT", f"{key}={value}")


def unread() -> list[tuple[str, str]]:
    """RLlib's keys of the sections of a file that are no keys of DT's."""
    found = []
    for section in rllib_keys.READ:
        parameters = inspect.signature(getattr(AlgorithmConfig, section)).parameters.values()
        names = [each.name for each in parameters if each.name != "self" and each.default != DEPRECATED_VALUE]
        found += [(section, name) for name in names if name not in DTConfig.keywords(section)]
    return found


@pytest.mark.parametrize(("section", "name"), unread())
def test_a_key_of_rllibs_that_nothing_reads_is_refused(section: str, name: str) -> None:
    message = rf"^{section}.{name} is RLlib's, and nothing here reads it; (remove it|set|use|wrap)"
    with pytest.raises(UserError, match=message) as raised:
        build_config({"algorithm": "DT", **DATA, section: {**DATA.get(section, {}), name: 1}})
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=message):
        getattr(DTConfig(), section)(**{name: 1})


def test_known_keys_that_nothing_reads_name_the_one_that_does() -> None:
    for key, remedy in {
        "training.gamma": "online.gamma",
        "training.train_batch_size": "train_batch_size_per_learner",
        "training.num_epochs": "training.gradient_steps",
        "training.grad_clip_by": "training.grad_clip",
        "training.optimizer": "online.optimizer",
        "training.model": "rl_module.model_config",
        "evaluation.evaluation_duration": "episodes_per_target",
        "env_runners.explore": "exploration_noise",
        "environment.clip_rewards": "reward_scale",
        "offline_data.input_": "offline_data.dataset",
    }.items():
        with pytest.raises(UserError, match=remedy):
            build("DT", f"{key}=1")
    # Whoever reads a key has it.
    assert build("IQL", "training.gamma=0.9").gamma == 0.9
    fragment = ("env_runners.rollout_fragment_length=20", "env_runners.num_env_runners=1")
    assert build("OnlineDT", *fragment, "online.mode=async").rollout_fragment_length == 20
    with pytest.raises(UserError, match=r"nothing reads it with online\.mode: sync"):
        build("OnlineDT", *fragment)


@pytest.mark.parametrize("old", RENAMED)
def test_an_earlier_name_is_refused_with_the_new_one(old: str) -> None:
    message = f"online.{old} is called online.{RENAMED[old]} now"
    with pytest.raises(UserError, match=message):
        build("OnlineDT", f"online.{old}=1")
    with pytest.raises(UserError, match=message):
        OnlineDTConfig().online(**{old: 1})


def test_a_key_of_another_section_is_refused_with_its_home() -> None:
    for key, home in {
        "online.evaluation_context_length": "evaluation.evaluation_context_length",
        "training.seed": "debugging.seed",
        "training.alpha": "online.alpha",
        "evaluation.num_env_runners": "env_runners.num_env_runners",
    }.items():
        with pytest.raises(UserError, match=rf"{key} has its place in another section; set {home}"):
            build("OnlineDT", f"{key}=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("offline_data.delayed_reward=nope", "delayed_reward is 'nope'; it must be true or false"),
        ("offline_data.below_return=nan", "below_return is nan; it must be a finite number, or null"),
        ("offline_data.return_balance=1.5", "return_balance is 1.5; .* of at least 0 and of at most 1"),
        ("offline_data.dataset=3", "dataset is 3; it must be the id of a data set"),
        ("training.lr=inf", "training.lr is inf; it must be a finite number above 0"),
        ("training.lr=[[0, 0.1]]", r"training.lr is \[\[0, 0.1\]\]"),
        ("training.weight_decay=true", "weight_decay is True"),
        ("training.return_scale=nan", "return_scale is nan"),
        ("training.pg_weight=2", "pg_weight is 2.* nothing reads it with training.objective imitation"),
        ("evaluation.target_returns=dataset:x", "dataset:x"),
        ("evaluation.target_returns=[1, .nan]", "not all finite"),
        ("evaluation.action_gradient=3", "action_gradient is 3; write a mapping"),
        ("debugging.seed=1.5", "debugging.seed is 1.5"),
        ("debugging.seed=abc", "debugging.seed is 'abc'"),
        ("learners.num_learners=-2", "num_learners is -2"),
        ("rl_module.model_config=[1]", r"model_config is \[1\]; write a mapping"),
        ("env_runners.gym_env_vectorize_mode=fast", "RLlib refuses the config: .*gym_env_vectorize_mode"),
        ("online.alpha=1", "algorithm DT has no section 'online'"),
    ],
)
def test_a_bad_value_is_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build("DT", override)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {lr: 1}\ntraining: {lr: 2}\n", "'training' stands twice.*line 2"),
        ("training:\n  lr: 1\n  warmup_steps: 2\n  lr: 3\n", "'lr' stands twice.*line 4"),
        ("a: &a {b: *a}\n", "a mapping in itself"),
        ("[" * 3000 + "]" * 3000, "not valid YAML"),
        ("a: [" + "{b: 1}, " * 9000 + "]", "more than 10000 values"),
        ("- algorithm\n", "must hold a mapping"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_yaml(file)
    assert "\n" not in str(raised.value)


def test_what_yaml_takes_for_something_else_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"name: \xff")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(file)
    file.write_text(
        "base: &base {lr: 1e-3, warmup_steps: 5}\nname: 2026-01-02\ntraining: {<<: *base, lr: 2}\n"
    )
    values = read_yaml(file)
    assert values["name"] == "2026-01-02" and values["training"] == {"lr": 2, "warmup_steps": 5}
    for algorithm in (["DT"], 3, None):
        with pytest.raises(UserError, match="algorithm is"):
            build_config({"algorithm": algorithm, **DATA})


def test_the_files_that_come_along_have_known_keys_only() -> None:
    for file in sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        if "algorithm" not in values:
            continue
        config: Any = ALGORITHMS[values["algorithm"]]
        for section in set(values) & set(SECTIONS):
            assert set(values[section]) <= set(config.keywords(section)), (file.name, section)


class _Spaces(gym.Env[Any, Any]):
    """An environment that is never stepped."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))


SMALL = {"embed_dim": 8, "num_layers": 1}
LEARNERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in ("DT", "TD3BC", "IQL", "CQL")},
    "Q-Align": ("DT", {}, {"training": {"objective": "q_align"}}),
    **{
        name: ("DT", {}, {"training": {"objective": name, "critic_from": "a run"}}) for name in ("pg", "awac")
    },
    "TD3+ODT": (
        "OnlineDT",
        {},
        {"online": {"exploration_targets": "quantiles", "averaged_share": 0.1, "action_regularization": 0.1}},
    ),
    "SAC+ODT": ("OnlineDT", {"head": "gaussian"}, {"online": {"rl_gradient": "sac"}}),
    "Q-Align online": ("OnlineDT", {"backbone": "radt"}, {"online": {"rl_gradient": "q_align"}}),
    "AWAC online": ("OnlineDT", {}, {"online": {"rl_gradient": "awac"}}),
}
"""Learners with different company: algorithm, and what is set of the model and beside it."""
LEFT = {"dataset", "exploration_targets", "temperature_lr", "initial_temperature", "exploration_noise"}
"""Settings of which the next test has no other value: others, or the head, would not go with it."""


def others(field: Any, large: int) -> Iterator[Any]:
    """Other values than the default, some of which may be refused."""
    try:
        field.metadata["check"]("", "?")
    except UserError as error:
        for names in re.findall(r"Allowed: (.*?)\.", str(error)):
            yield from names.split(", ")
    if isinstance(field.default, bool):
        yield not field.default
    elif isinstance(field.default, (int, float)):
        yield field.default / 2
    yield from (large, 2, 0.5)


def may_change(config: Any) -> dict[str, Any]:
    """The settings by their names that are not fixed whole; how a policy is evaluated is nothing of its weights."""
    parts = (part for part in config.parts if part.section not in ("environment", "evaluation", "learners"))
    found = {each.name: each for part in parts for each in fields(part) if each.name not in LEFT}
    return {name: each for name, each in found.items() if each.metadata["fixed"] is not whole_value}


def change_all(config: Any) -> set[str]:
    """Give every setting that may change while a run goes on another value; return their names."""
    fixed, changed = config.fixed_settings(), set[str]()
    # What asks for another setting is refused the first time; a lower bound stands before its upper one.
    for large, field in enumerate([*may_change(config).values()] * 2):
        name, current = attribute_of(field), getattr(config, attribute_of(field))
        for value in () if field.name in changed else others(field, large):
            setattr(config, name, value)
            with contextlib.suppress(UserError):
                config.validate()
                if value != current and config.fixed_settings() == fixed:
                    changed.add(field.name)
                    break
            setattr(config, name, current)
    return changed


def restored(config: Any, store: TrajectoryStore) -> Any:
    """What a checkpoint must fit: shapes of weights, and how optimizers group them."""
    if config.objective_critic is not None:  # as after it was taken over
        config.objective_critic, config.critic_hidden = None, 8
    config.resolve(store)
    learner = config.build_learner()
    learner.build()
    weights = learner.module[DEFAULT_MODULE_ID].state_dict()
    groups = {
        name: [[weight.shape for weight in group["params"]] for group in optimizer.param_groups]
        for name, optimizer in learner._named_optimizers.items()
    }
    return {name: weight.shape for name, weight in weights.items()}, groups


def test_what_checkpoints_hang_on_is_fixed() -> None:
    """A model's shapes are compared weight by weight, and named; an optimizer's groups would be a bare ValueError."""
    store, changed, known = store_for(_Spaces()), set[str](), set[str]()
    for algorithm, model, settings in LEARNERS.values():
        values = {"rl_module": {"model_config": {**SMALL, **model}}, **settings}
        config: Any = build_config({"algorithm": algorithm, **DATA, **values})
        expected = restored(config.copy(), store)
        known |= may_change(config).keys()
        changed |= change_all(config)
        assert restored(config, store) == expected
    assert changed == known
