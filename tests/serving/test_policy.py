from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import build_model, store_for

import rayrl_dt
from rayrl_dt import envs
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import save_bundle
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.seeding import torch_generator
from rayrl_dt.serving.policy import SequencePolicy

MakeStore = Callable[..., TrajectoryStore]


@pytest.fixture
def model(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store())


def run(policy: SequencePolicy, env: gym.Env[Any, Any], target: float, steps: int = 40) -> list[Any]:
    """Actions over several episodes of at most 15 steps."""
    actions: list[Any] = []
    env.reset(seed=0)
    while len(actions) < steps:
        observation, _ = env.reset()
        policy.reset(target)
        action = policy.act(observation)
        for _ in range(15):
            actions.append(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
            action = policy.act(observation, float(reward))
    return actions


def run_vector(actor: VectorActor, env: gym.Env[Any, Any], target: float, steps: int = 40) -> list[Any]:
    """The same with a vector actor of one slot."""
    actions: list[Any] = []
    env.reset(seed=0)
    while len(actions) < steps:
        observation, _ = env.reset()
        reward, starting = 0.0, True
        for step in range(16):
            action = actor.act(
                np.array([observation]), np.array([reward]), np.array([starting]), np.array([target])
            )[0]
            if step == 15:
                break
            starting = False
            actions.append(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
    return actions


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("sample_seed", [None, 3])
def test_acts_as_the_vector_actor_does(name: str, sample_seed: int | None) -> None:
    env = envs.make(name)
    model = build_model(store_for(env))
    policy = SequencePolicy(model, sample_seed=sample_seed)
    actions = run(policy, env, target=-300.0)
    sample = None if sample_seed is None else torch_generator(sample_seed, "policy-actions")
    expected = run_vector(VectorActor(model, 1, sample=sample), env, target=-300.0)
    np.testing.assert_array_equal(actions, expected)
    assert all(env.action_space.contains(action) for action in actions)
    assert all(isinstance(action, np.ndarray if policy.spec.head.continuous else int) for action in actions)


def test_acts_as_it_was_evaluated_unless_told_otherwise(tmp_path: Path) -> None:
    env = envs.make("CartPole-v1")
    model = build_model(store_for(env), seed=6)
    spec = model.spec.acting(context_length=2, action_selection="sample")
    save_bundle(spec, model.state_dict(), tmp_path)

    def ran(**options: Any) -> list[Any]:
        return run(SequencePolicy.load(tmp_path, **options), env, target=20.0, steps=100)

    def expected(length: int, seed: int | None) -> list[Any]:
        sample = None if seed is None else torch_generator(seed, "policy-actions")
        return run_vector(
            VectorActor(model, 1, sample=sample, context_length=length), env, target=20.0, steps=100
        )

    assert ran() == expected(2, 0) != expected(6, 0)
    assert ran(sample_seed=3) == expected(2, 3) != expected(2, 0)
    assert ran(action_selection="mode") == expected(2, None) != expected(6, None)
    assert ran(context_length=6, action_selection="mode") == expected(6, None)
    with pytest.raises(UserError, match="sample_seed is 3, and action_selection 'mode' draws nothing"):
        ran(sample_seed=3, action_selection="mode")


def test_discrete_actions_are_plain_integers(make_store: MakeStore) -> None:
    policy = SequencePolicy(build_model(make_store(actions=4, first_action=3)))
    policy.reset(1.0)
    action = policy.act(np.zeros(3))
    assert type(action) is int and 3 <= action <= 6


def test_the_target_matters_and_defaults_to_the_95th_percentile(model: SequenceModel) -> None:
    policy, first = SequencePolicy(model), np.array([5.0, 0.1, 0.2])
    actions = {}
    for target in (None, model.spec.data_returns["p95"], 1e4):
        policy.reset(target)
        actions[target] = policy.act(first)
    np.testing.assert_array_equal(actions[None], actions[model.spec.data_returns["p95"]])
    assert np.abs(actions[None] - actions[1e4]).max() > 1e-3


def test_a_reset_forgets_the_episode(model: SequenceModel) -> None:
    policy = SequencePolicy(model)
    policy.reset(3.0)
    first = policy.act(np.ones(3))
    policy.act(np.zeros(3), 1.0)
    policy.reset(3.0)
    np.testing.assert_array_equal(policy.act(np.ones(3), 99.0), first)


def test_an_action_may_be_changed_by_its_owner(model: SequenceModel) -> None:
    policies = SequencePolicy(model), SequencePolicy(model)
    for policy in policies:
        policy.reset(3.0)
    mine, other = (policy.act(np.ones(3)) for policy in policies)
    mine += 100
    np.testing.assert_array_equal(*(policy.act(np.zeros(3), 1.0) for policy in policies))
    assert np.abs(other).max() <= 1


def test_misuse_is_explained(model: SequenceModel) -> None:
    policy = SequencePolicy(model)
    with pytest.raises(UserError, match=r"call reset\(target_return=...\) before act"):
        policy.act(np.zeros(3))
    for bad in (float("nan"), float("inf"), 1e39):
        with pytest.raises(UserError, match="must be a finite number"):
            policy.reset(bad)
    with pytest.raises(UserError, match="reset"):
        policy.act(np.zeros(3))  # a refused reset is no reset
    policy.reset(1.0)
    for wrong in (np.zeros(4), np.zeros((1, 3)), 0.0):
        with pytest.raises(UserError, match=r"has shape .*, and must have \(3,\)"):
            policy.act(wrong)
    policy.act([0.0, 1.0, 2.0])
    with pytest.raises(UserError, match=r"needs the reward.*policy.act\(observation, reward\)"):
        policy.act(np.zeros(3))
    policy.act(np.zeros(3), 0.5)


def test_a_step_that_holds_nan_is_not_taken(model: SequenceModel) -> None:
    one, other = SequencePolicy(model), SequencePolicy(model)
    for policy in (one, other):
        policy.reset(1.0)
        policy.act([0.0, 1.0, 2.0])
    for observation, reward in (([0.0, np.nan, 0.0], 0.5), (np.zeros(3), np.inf), (np.zeros(3), -1e39)):
        with pytest.raises(UserError, match="the step was not taken"):
            one.act(observation, reward)
    np.testing.assert_array_equal(one.act(np.zeros(3), 0.5), other.act(np.zeros(3), 0.5))


@pytest.mark.parametrize("inside", ["", "policy"])
def test_loads_a_bundle_or_the_folder_around_it(model: SequenceModel, tmp_path: Path, inside: str) -> None:
    save_bundle(model.spec, model.state_dict(), tmp_path / "run" / inside)
    env = gym.wrappers.TransformObservation(
        envs.make("Pendulum-v1"), lambda x: x, gym.spaces.Box(-np.inf, np.inf, (3,))
    )
    policy = rayrl_dt.SequencePolicy.load(tmp_path / "run")
    other = SequencePolicy(model)
    for each in (policy, other):
        each.reset(10.0)
    observation, _ = env.reset(seed=0)
    for step in range(10):
        reward = None if step == 0 else 0.5 * step
        np.testing.assert_array_equal(policy.act(observation, reward), other.act(observation, reward))
        observation = observation + 0.1
    assert policy.spec.dataset == "test"
    assert SequencePolicy.load(str(tmp_path / "run"), sample_seed=1).model is not policy.model


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; name a run folder, a checkpoint or a policy bundle"):
        SequencePolicy.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no policy"):
        SequencePolicy.load(tmp_path)
