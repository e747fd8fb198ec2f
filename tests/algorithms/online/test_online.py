"""Online finetuning through RLlib: the presets, their update order, the replay, exact resume, lost runners."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from pyarrow import fs
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from rayrl_dt import DTConfig, OnlineDT, OnlineDTConfig, SequencePolicy, UserError, load_dataset
from rayrl_dt.algorithms.learner import scheduled_lr
from rayrl_dt.algorithms.online.config import slots_at_once
from rayrl_dt.errors import TrainingDiverged
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.gradient import Batch
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.runs.config_files import apply_overrides, build_config
from rayrl_dt.seeding import derive_seed

pytestmark = pytest.mark.ray

PRESETS: dict[str, dict[str, Any]] = {
    "TD3+ODT": {},
    "TD3": {"bc_weight": 0.0, "alpha": 1.0},
    "deterministic ODT": {"rl_gradient": "none"},
    "ODT": {"rl_gradient": "none", "head": "gaussian"},
}
RESUMED = {
    **PRESETS,
    "TD3+ODT, held": {"action_regularization": 0.05},
    "ODT, held": {**PRESETS["ODT"], "action_regularization": 0.05},
}
Configure = Callable[..., OnlineDTConfig]


def configured(
    data: str, *, head: str = "auto", backbone: str = "dt", dropout: float = 0.1, **settings: Any
) -> Any:
    """Configures a run of seconds: 4 updates, then 2 rounds of one episode and 3 updates."""
    config = OnlineDTConfig()
    config.offline_data(dataset=settings.pop("dataset", data))
    if "start_from" not in settings:
        model = {"context_length": 4, "embed_dim": 16, "num_layers": 2, "num_heads": 2}
        config.rl_module(model_config={**model, "dropout": dropout, "head": head, "backbone": backbone})
    config.training(gradient_steps_per_iteration=4, train_batch_size_per_learner=8, warmup_steps=6)
    config.evaluation(target_returns="dataset:3", episodes_per_target=2)
    defaults = {
        "pretrain_steps": 4,
        "env_steps": 400,
        "env_steps_per_iteration": 200,
        "updates_per_iteration": 3,
        "replay_capacity_trajectories": 5,
    }
    return config.online(**{**defaults, **settings})


@pytest.fixture
def online(ray_session: None, pendulum_data: str) -> Configure:
    """Returns a function that configures a run of seconds on Pendulum."""
    return partial(configured, pendulum_data)


@pytest.fixture(scope="module")
def two_learners(ray_session: None, pendulum_data: str) -> Iterator[Any]:
    """Returns an algorithm with two learners; they take longer to start than to do what a test asks."""
    # They stay while other tests start theirs, so they take no CPU from Ray's count.
    config = configured(pendulum_data).learners(num_learners=2, num_cpus_per_learner=0)
    algorithm = config.build_algo()
    yield algorithm
    algorithm.stop()


def state(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    """All weights of the learner: policy, critic, targets."""
    module = algorithm.learner_group._learner.networks
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> bool:
    names = [name for name in one if name.startswith(prefix)]
    assert names and one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in names)


def standing(algorithm: Any) -> dict[str, Any]:
    """What the algorithm reports, less the rate of the clock."""
    return {name: value for name, value in algorithm.report().items() if name != "env_steps_per_s"}


def train(algorithm: Any) -> None:
    for _ in range(50):
        if algorithm.done:
            return
        algorithm.train()
    raise AssertionError("the run does not end")


@pytest.mark.parametrize("preset", RESUMED)
def test_every_preset_pretrains_collects_learns_and_resumes_bit_exactly(
    online: Configure, preset: str, tmp_path: Path
) -> None:
    whole = online(**RESUMED[preset]).build_algo()
    initial = state(whole)
    train(whole)
    assert (whole.gradient_steps, whole.rounds, whole.collected_episodes) == (10, 2, 2)
    assert whole.env_steps == 400 == whole.replay.counts.added_steps - sum(_logged(whole))
    assert not same(initial, state(whole), "model.")
    half = online(**RESUMED[preset]).build_algo()
    for _ in range(2):
        half.train()
    assert half.rounds == 1
    half.save_to_path(str(tmp_path / "half"))
    half.stop()
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "half"))
    assert (resumed.gradient_steps, resumed.env_steps, resumed.rounds) == (7, 200, 1)
    train(resumed)
    assert same(state(whole), state(resumed))
    assert standing(whole) == standing(resumed)
    for name, value in whole.replay.state()["steps"].items():
        np.testing.assert_array_equal(value, resumed.replay.state()["steps"][name])
    one, other = whole.evaluate()["alignment"], resumed.evaluate()["alignment"]
    assert [t["returns"] for t in one["targets"]] == [t["returns"] for t in other["targets"]]
    whole.stop()
    resumed.stop()


class Tiring(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum that pays less with each reset, whatever the seed: it remembers, as running statistics do."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.resets = 0

    def reset(self, **options: Any) -> Any:
        self.resets += 1
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float(reward) / self.resets, *rest


def tiring() -> Tiring:
    return Tiring()


def test_what_an_environment_remembers_does_not_reach_the_next_round(
    online: Configure, tmp_path: Path
) -> None:
    """A round collects the same after others as after a resume, or on a runner that has just come back."""
    algorithm = online().environment(f"{__name__}:tiring").build_algo()
    for _ in range(2):
        algorithm.train()
    algorithm.save_to_path(str(tmp_path / "half"))
    train(algorithm)
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "half"))
    train(resumed)
    assert algorithm.rounds == resumed.rounds == 2
    np.testing.assert_array_equal(algorithm.replay.store.rewards, resumed.replay.store.rewards)
    assert same(state(algorithm), state(resumed))
    assert algorithm.evaluate()["return_mean"] == resumed.evaluate()["return_mean"]
    algorithm.stop()
    resumed.stop()


def test_data_without_an_environment_cannot_be_finetuned(
    online: Configure, pendulum_data: str, tmp_path: Path
) -> None:
    store = load_dataset(pendulum_data)
    bare = replace(store, info=replace(store.info, env_spec=None)).save(tmp_path / "bare")
    with pytest.raises(UserError, match="there is no environment to finetune in: no environment is recorded"):
        online(dataset=f"store:{bare}").build_algo()


def test_a_checkpoint_elsewhere_is_whole_and_holds_a_policy(online: Configure, tmp_path: Path) -> None:
    """The file system stands for a bucket: RLlib is told of it, and the path alone means nothing here."""
    bucket = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    half = online().build_algo()
    for _ in range(2):
        half.train()
    half.save_to_path("a/checkpoint", filesystem=bucket)
    resumed = OnlineDT.from_checkpoint("a/checkpoint", filesystem=bucket)
    assert (resumed.gradient_steps, len(resumed.replay)) == (7, len(half.replay))
    assert same(state(half), state(resumed))
    for algorithm in (half, resumed):
        algorithm.stop()
    policy = SequencePolicy.load(tmp_path / "a" / "checkpoint")
    for name, value in policy.model.state_dict().items():
        np.testing.assert_array_equal(value, state(half)[f"model.{name}"])
    bundle = Bundle.open(tmp_path / "a" / "checkpoint")
    assert bundle.header["critic"]["reward_scale"] == half.config.reward_scale
    for name, value in bundle.critic.q.state_dict().items():
        np.testing.assert_array_equal(value, state(half)[f"critic.{name}"])
    refine = bundle.refiner(ActionGradient(eta=0.1, n=3))
    assert refine is not None
    observations, actions = np.ones((5, 3), np.float32), torch.zeros(5, 1)
    better = refine(observations, actions)
    mean, std = bundle.spec.normalizer.mean, bundle.spec.normalizer.std
    normalized = torch.as_tensor((observations - mean) / std)
    before, after = (bundle.critic.q(normalized, each).amin(dim=0) for each in (actions, better))
    assert (after > before).all(), "the critic that it was finetuned with refines its actions"


def _logged(algorithm: Any) -> list[int]:
    """Lengths of the logged episodes that the replay began with."""
    store = algorithm.offline_data.store
    return store.lengths[np.argsort(store.episode_returns, kind="stable")[-5:]].tolist()


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        ({}, "none"),
        ({"timestep_embedding": "learned"}, "learned"),
        ({"backbone": "convformer"}, "none"),
        ({"backbone": "starformer"}, "auto"),  # it has none, and is asked for none
    ],
    ids=str,
)
def test_timesteps_are_not_embedded_unless_asked_for(chosen: dict[str, str], kind: str) -> None:
    config = OnlineDTConfig()
    config.rl_module(model_config=chosen)
    assert config.sequence_model.timestep_embedding == kind


def test_without_weight_the_critic_leaves_the_policy_bit_for_bit(online: Configure) -> None:
    runs = []
    for settings in ({"alpha": 0.0}, {"rl_gradient": "none"}):
        algorithm = online(**settings).build_algo()
        train(algorithm)
        runs.append({n: v for n, v in state(algorithm).items() if n.startswith("model.")})
        algorithm.stop()
    assert same(*runs)


def test_the_order_of_updates(online: Configure) -> None:
    """Critic at every step; policy and targets at every second one; targets equal at the start of finetuning."""
    algorithm = online(actor_interval=2, polyak=0.25, env_steps=200, updates_per_iteration=4).build_algo()
    algorithm.train()
    learner = algorithm.learner_group._learner
    seen: list[tuple[int, dict[str, Any]]] = [(learner.gradient_step, state(algorithm))]
    copied: list[bool] = []
    module = learner.networks
    begin_finetuning = module.begin_finetuning

    def copy_and_look() -> None:
        begin_finetuning()
        now = state(algorithm)
        copied.append(
            all(
                np.array_equal(now[f"target_{n}"], v)
                for n, v in now.items()
                if n.startswith(("model.", "critic."))
            )
        )

    module.begin_finetuning = copy_and_look
    algorithm.observe_steps(lambda step, loss: seen.append((step, state(algorithm))) is None)
    algorithm.train()
    assert copied == [True]
    assert [step for step, _ in seen] == [4, 5, 6, 7, 8]
    for (_, before), (step, after) in pairwise(seen):
        assert not same(before, after, "critic.")
        moves = step % 2 == 1  # the first online step updates both
        assert same(before, after, "model.") != moves
        if not moves:
            assert same(before, after, "target_")
        elif step > 5:
            for kind in ("model", "critic"):
                for name in (n for n in after if n.startswith(f"{kind}.q") or n.startswith("model.head")):
                    expected = 0.75 * before[f"target_{name}"] + 0.25 * after[name]
                    np.testing.assert_allclose(after[f"target_{name}"], expected, rtol=1e-5, atol=1e-6)
    algorithm.stop()


def test_means_are_those_of_the_steps_that_log(online: Configure, tmp_path: Path) -> None:
    """A policy that steps half as often as its critic has the metrics of its own steps; the last where it has none."""
    algorithm = online(actor_interval=2, updates_per_iteration=1).build_algo()
    learner = algorithm.learner_group._learner
    seen: dict[str, list[float]] = {}
    log = learner.log
    learner.log = lambda key, value: seen.setdefault(key, []).append(float(value)) or log(key, value)
    found = algorithm.train()["learners"]["default_policy"]
    assert {key: len(values) for key, values in seen.items()} == {
        **dict.fromkeys(("critic_loss", "q_mean"), 4),
        **dict.fromkeys(("bc_loss", "grad_norm", "loss"), 2),
    }
    for key, values in seen.items():
        assert found[key] == pytest.approx(np.mean(values))
    first = algorithm.train()["learners"]["default_policy"]
    algorithm.save_to_path(str(tmp_path / "between"))
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "between"))
    for each in (algorithm, resumed):
        second = each.train()["learners"]["default_policy"]
        assert each.gradient_steps == 6, "the step after the policy's"
        assert all(second[key] == first[key] for key in ("bc_loss", "grad_norm", "loss"))
        assert second["critic_loss"] != first["critic_loss"]
        each.stop()


def test_bc_weight_zero_leaves_the_critics_gradient_alone(online: Configure) -> None:
    algorithm = online(bc_weight=0.0, alpha=0.5, optimizer="adamw", dropout=0.0).build_algo()
    algorithm.train()
    learner = algorithm.learner_group._learner
    module, window = learner.networks, _window(algorithm)
    module.precision = "fp32"
    found: list[list[torch.Tensor]] = []
    follow = learner.follow
    learner.follow = lambda name, gradients, *rest, **named: (
        found.append([gradient.clone() for gradient in gradients]) or follow(name, gradients, *rest, **named)
    )
    critic = {name: value.clone() for name, value in module.critic.state_dict().items()}
    learner.config = learner.config.copy(copy_frozen=False)
    learner.config.grad_clip = None
    expected = torch.autograd.grad(
        -0.5
        * module.critic.first(module.model.inputs(window).observations, module.model(window))[
            window.mask
        ].mean(),
        list(module.model.parameters()),
        allow_unused=True,
    )
    _policy_step(learner, window)
    for one, other in zip(found[0], expected, strict=True):
        torch.testing.assert_close(
            one, torch.zeros_like(one) if other is None else other, rtol=1e-4, atol=1e-6
        )
    assert all(torch.equal(value, module.critic.state_dict()[name]) for name, value in critic.items())
    algorithm.stop()


def test_actions_are_held_from_the_start_of_finetuning_on(online: Configure) -> None:
    """At the first online step the distance is zero, and so is its gradient; before, it does not count at all."""
    runs = []
    for weight in (0.0, 20.0):
        config = online(action_regularization=weight, dropout=0.0, env_steps=200)
        algorithm = config.training(warmup_steps=0, lr=1e-2).build_algo()
        seen: dict[int, dict[str, Any]] = {}
        algorithm.observe_steps(lambda step, loss, a=algorithm, s=seen: s.update({step: state(a)}) is None)
        train(algorithm)
        runs.append(seen)
        algorithm.stop()
    free, held = runs
    assert list(free) == list(held) == [1, 2, 3, 4, 5, 6, 7]
    assert not any(name.startswith("frozen_model") for name in free[7])
    for step in range(1, 6):
        assert all(np.array_equal(value, held[step][name]) for name, value in free[step].items())
    assert not all(np.array_equal(value, held[6][name]) for name, value in free[6].items())
    names = [name for name in held[7] if name.startswith("model.")]
    for step in (5, 6, 7):
        assert all(np.array_equal(held[step][f"frozen_{name}"], held[4][name]) for name in names)
    assert not same({n: held[4][n] for n in names}, {n: held[7][n] for n in names})


@pytest.mark.parametrize("preset", ["TD3+ODT", "ODT"])
def test_the_regularizer_pulls_towards_the_first_policy_s_actions(online: Configure, preset: str) -> None:
    settings = {**PRESETS[preset], "action_regularization": 0.5, "bc_weight": 0.0, "dropout": 0.0}
    if preset == "ODT":
        settings["initial_temperature"] = 1e-12
    algorithm = online(**settings, alpha=0.0).build_algo()
    learner = algorithm.learner_group._learner
    module, window = learner.networks, _window(algorithm)
    module.precision = "fp32"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.frozen_model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)

    def distance() -> torch.Tensor:
        one, other = (net(window) for net in (module.model, module.frozen_model))
        if preset == "ODT":
            one, other = (torch.tanh(outputs.chunk(2, dim=-1)[0]) for outputs in (one, other))
        return ((one - other.detach())[window.mask] ** 2).mean()

    expected = torch.autograd.grad(0.5 * distance(), list(module.model.parameters()), allow_unused=True)
    found: list[list[torch.Tensor]] = []
    follow = learner.follow
    learner.follow = lambda name, gradients, *rest, **named: (
        found.append([gradient.clone() for gradient in gradients]) or follow(name, gradients, *rest, **named)
    )
    learner.config = learner.config.copy(copy_frozen=False)
    learner.config.grad_clip = None
    before, frozen = distance().detach(), state(algorithm)
    for _ in range(5):
        _policy_step(learner, window)
    first = next(step for step in found if len(step) == len(expected))  # the temperature steps, too
    for one, other in zip(first, expected, strict=True):
        torch.testing.assert_close(
            one, torch.zeros_like(one) if other is None else other, rtol=1e-4, atol=1e-6
        )
    assert any((gradient != 0).any() for gradient in first)
    assert distance() < before
    names = [name for name in frozen if name.startswith("frozen_model.")]
    assert names and all(np.array_equal(frozen[name], state(algorithm)[name]) for name in names)
    algorithm.stop()


def test_discrete_actions_have_no_distance(online: Configure, cartpole_data: str) -> None:
    config = online(dataset=cartpole_data, rl_gradient="none", action_regularization=0.1)
    with pytest.raises(UserError, match=r"action_regularization is 0.1.*Discrete\(2\).*set it to 0"):
        config.build_algo()


def _batch(learner: Any, window: Any) -> Batch:
    return Batch(window, learner.networks.model, torch.Generator().manual_seed(0))


def _policy_step(learner: Any, window: Any) -> None:
    """Takes the policy's step as the first one online."""
    learner.gradient_step = learner.config.pretrain_steps
    learner._policy_step(_batch(learner, window))


def _window(algorithm: Any) -> Any:
    (iterator,) = algorithm.offline_data.iterators(0)
    return next(iterator.batches(rank=0, first_step=0, count=1)).to_torch()


def test_the_target_actor_sees_the_window_shifted_by_one(online: Configure) -> None:
    algorithm = online().build_algo()
    learner = algorithm.learner_group._learner
    seen: list[Any] = []
    learner.networks.target_model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    window = _window(algorithm)
    learner.rl_gradient.critic_step(learner, _batch(learner, window))
    (shifted,) = seen
    inner = window.mask[:, :-1] & window.mask[:, 1:]
    for name in ("observations", "returns_to_go", "timesteps"):
        ahead, behind = getattr(shifted, name)[:, :-1], getattr(window, name)[:, 1:]
        assert torch.equal(ahead[inner], behind[inner])
    assert (shifted.actions[:, -1] == 0).all()
    assert torch.equal(shifted.mask, window.mask)
    assert not learner.networks.target_model.training
    algorithm.stop()


def test_the_critic_learns_from_scaled_rewards(online: Configure) -> None:
    """A critic of rewards divided by 8 is one of those rewards as they are."""
    runs = []
    for scale in (1.0, 8.0):
        algorithm = online(reward_scale=scale).build_algo()
        learner, window = algorithm.learner_group._learner, _window(algorithm)
        learner.networks.precision = "fp32"
        scaled = replace(window, rewards=window.rewards * scale)
        learner.rl_gradient.critic_step(learner, _batch(learner, scaled))
        runs.append(state(algorithm))
        learner.rl_gradient.critic_step(learner, _batch(learner, window))
        runs.append(state(algorithm))
        algorithm.stop()
    assert same(runs[0], runs[2]) and not same(runs[1], runs[3], "critic.")


def test_exploration_is_noisy_within_bounds_and_a_function_of_its_slot(online: Configure) -> None:
    from rayrl_dt.evaluation.rollout import Slot

    runner = (algorithm := online(exploration_noise=0.3).build_algo()).env_runner_group.local_env_runner
    slot = Slot(-200.0, 1, derive_seed(0, "x") % 2**31)
    one, again = (runner.collect([slot]).episodes[0] for _ in range(2))
    greedy = runner.evaluate([slot], sample_actions=False).episodes[0]
    actions = one.trajectory.actions
    np.testing.assert_array_equal(actions, again.trajectory.actions)
    assert greedy.episode_return != one.episode_return and greedy.trajectory is None
    assert np.abs(actions).max() <= 2.0 and len(np.unique(actions)) > 100
    assert not one.trajectory.terminated and len(one.trajectory) == 200
    algorithm.stop()


def test_what_was_asked_for_is_not_stored(online: Configure) -> None:
    """Returns are relabeled: those in the replay were earned, whatever the rollout was asked for."""
    asked = 1e6
    algorithm = online(exploration_target=asked, env_steps=200, updates_per_iteration=1).build_algo()
    train(algorithm)
    store = algorithm.replay.store
    begin = int(store.starts[-1])
    rewards, to_go = store.rewards[begin:], store.returns_to_go[begin:]
    assert len(rewards) == 200 and algorithm.collected_return < 0
    np.testing.assert_allclose(to_go, np.cumsum(rewards[::-1])[::-1], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(to_go[0], algorithm.collected_return, rtol=1e-5)
    np.testing.assert_allclose(to_go[:-1] - to_go[1:], rewards[:-1], rtol=1e-3, atol=1e-3)
    algorithm.stop()


def test_the_warm_up_goes_on_into_finetuning(online: Configure) -> None:
    config = online(updates_per_iteration=4, env_steps=200).training(lr=0.01, warmup_steps=6)
    algorithm = config.build_algo()
    learner = algorithm.learner_group._learner
    rates: list[float] = []

    def observe(step: int, loss: float) -> bool:
        rates.append(learner.get_optimizer("default_policy", "policy").param_groups[0]["lr"])
        return True

    algorithm.observe_steps(observe)
    train(algorithm)
    # Four steps of pretraining, four of finetuning.
    np.testing.assert_allclose(rates, [0.01 * min(step / 6, 1) for step in range(1, 9)])
    algorithm.stop()


def test_the_temperature_and_the_policy_do_not_train_each_other(online: Configure) -> None:
    runs = []
    for rate in (0.0, 0.5):
        algorithm = online(**PRESETS["ODT"], dropout=0.0, temperature_lr=rate).build_algo()
        learner, window = algorithm.learner_group._learner, _window(algorithm)
        before = state(algorithm)
        _policy_step(learner, window)
        runs.append(state(algorithm))
        assert not same(before, runs[-1], "model.")
        fell = runs[-1]["log_temperature"] < before["log_temperature"]
        # The policy's own step leaves the temperature; its step follows the entropy's distance from -A, A = 1.
        assert fell == (rate > 0 and float(learner._means.take()["entropy"]) > -1.0)
        assert (runs[-1]["log_temperature"] == before["log_temperature"]) == (rate == 0)
        algorithm.stop()
    free, held = ({n: v for n, v in run.items() if n.startswith("model.")} for run in runs)
    assert same(free, held), "the temperature's step leaves the policy"


def test_time_outs_may_be_stored_as_ends(online: Configure) -> None:
    for flag in (False, True):
        algorithm = online(timeout_is_terminal=flag, env_steps=200, updates_per_iteration=1).build_algo()
        train(algorithm)
        assert bool(algorithm.replay.store.terminated[-1]) is flag
        algorithm.stop()


@pytest.mark.parametrize("rl_gradient", ["td3", "none"])
def test_finetuning_starts_from_a_policy(
    online: Configure, pendulum_data: str, tmp_path: Path, rl_gradient: str
) -> None:
    model = {"context_length": 3, "embed_dim": 8, "num_layers": 1, "backbone": "radt"}
    offline = DTConfig().offline_data(dataset=pendulum_data).rl_module(model_config=model)
    source = (
        offline.training(gradient_steps=2, gradient_steps_per_iteration=2, return_scale=50.0)
        .evaluation(evaluation_context_length=2)
        .build_algo()
    )
    source.train()
    weights = source.policy_state()
    weights["observation_mean"] = np.ones(3, np.float32)
    ones = replace(source.policy_spec.normalizer, mean=weights["observation_mean"])
    spec = replace(source.policy_spec, normalizer=ones)
    bundle = save_bundle(spec, weights, tmp_path / "bundle")
    source.stop()
    algorithm = online(start_from=str(bundle), rl_gradient=rl_gradient).build_algo()
    taken = algorithm.policy_state()
    assert same(taken, weights)
    ours = algorithm.policy_spec
    assert (ours.model, ours.return_scale, ours.acts_on) == (spec.model, 50.0, 2)
    own = online(start_from=str(bundle), rl_gradient=rl_gradient).evaluation(evaluation_context_length=3)
    own.resolve(algorithm.offline_data.full)
    assert own.resolved_spec.acts_on == 3, "its own config has the last word"
    np.testing.assert_array_equal(ours.normalizer.mean, 1.0)
    train(algorithm)
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    # The checkpoint needs nothing but itself.
    bundle.rename(tmp_path / "gone")
    restored = OnlineDT.from_checkpoint(str(tmp_path / "checkpoint"))
    assert same(state(algorithm), state(restored))
    assert restored.policy_spec.return_scale == 50.0
    algorithm.stop()
    restored.stop()


def test_a_policy_of_other_spaces_is_refused(
    online: Configure, cartpole_data: str, pendulum_data: str, tmp_path: Path
) -> None:
    source = DTConfig().offline_data(dataset=pendulum_data).build_algo()
    bundle = save_bundle(source.policy_spec, source.policy_state(), tmp_path / "bundle")
    source.stop()
    with pytest.raises(UserError, match="trained in other spaces"):
        online(dataset=cartpole_data, start_from=str(bundle), rl_gradient="none").build_algo()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        # Of delayed rewards: its target would stay where the replay's returns fall.
        ({}, r"bundle holds its target constant.*without offline_data.delayed_reward"),
        ({"head": "gaussian"}, r"td3 needs a deterministic policy.*rl_gradient: none"),
        ({"backbone": "mlp"}, r"mlp has one output per window"),
        ({"backbone": "reinformer"}, r"reinformer cannot be finetuned online"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_finetuned_is_refused(
    online: Configure, pendulum_data: str, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    store = load_dataset(pendulum_data, delayed_reward=not model)
    spec = PolicySpec.from_store(ModelConfig(**model), store, return_scale=None)
    weights = {name: value.numpy() for name, value in SequenceModel(spec).state_dict().items()}
    bundle = save_bundle(spec, weights, tmp_path / "bundle")
    with pytest.raises(UserError, match=message):
        online(start_from=str(bundle)).build_algo()


def test_the_last_episodes_are_as_many_as_env_steps_takes(online: Configure) -> None:
    algorithm = online(env_steps=1000).env_runners(num_envs_per_env_runner=3).build_algo()
    played = []
    while not algorithm.done:
        algorithm.train()
        played.append(algorithm.collected_episodes)
    algorithm.stop()
    assert played == [0, 3, 5] and algorithm.env_steps == 1000 and algorithm.rounds == 5
    # Of logged episodes of 200 steps, then of those that were collected.
    at_once = partial(slots_at_once, algorithm.config)
    assert (at_once(450, 0, 0), at_once(150, 0, 0), at_once(150, 600, 6)) == (3, 1, 2)


def test_two_learners_and_two_runners(online: Configure, tmp_path: Path) -> None:
    config = online(env_steps_per_iteration=400).learners(num_learners=2).env_runners(num_env_runners=2)
    algorithm = config.build_algo()
    algorithm.train()
    algorithm.train()
    assert algorithm.collected_episodes == 2 and algorithm.gradient_steps == 7
    weights = algorithm.learner_group.foreach_learner(
        lambda learner: {n: v.numpy() for n, v in learner.networks.state_dict().items()}
    )
    one, other = (result.get() for result in weights)
    assert same(one, other)
    assert algorithm.done
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    # Fewer runners on resume, and a local learner.
    local = online(env_steps_per_iteration=400, env_steps=800).build_algo()
    local.restore_from_path(str(tmp_path / "checkpoint"))
    assert len(local.replay) == 5 and local.env_steps == 400
    local.train()
    assert local.collected_episodes == 4
    local.stop()


@pytest.mark.parametrize("averaged_share", [None, 0.6])
@pytest.mark.parametrize("preset", PRESETS)
def test_two_learners_of_every_preset_stay_equal(
    online: Configure, two_learners: Any, preset: str, averaged_share: float | None
) -> None:
    """Through pretraining into finetuning, on batches of their own: a preset's learner in both processes."""
    config = online(**PRESETS[preset], averaged_share=averaged_share).learners(num_learners=2)
    config.validate()
    iterators = config.offline_data_class(config).iterators(2)
    spaces = {DEFAULT_MODULE_ID: (config.observation_space, config.action_space)}

    def learn(host: Any) -> tuple[Any, ...]:
        learner = config.build_learner(spaces=spaces)
        states = [weights(learner)]
        data = TrainingData(data_iterators=[iterators[host._rank]])
        learner.update(training_data=data, num_iters=5)
        states.append(weights(learner))
        return learner._rank, learner.gradient_step, float(learner._last_loss), *states

    def weights(learner: Any) -> dict[str, Any]:
        return {n: v.numpy().copy() for n, v in learner.networks.state_dict().items()}

    one, other = (result.get() for result in two_learners.learner_group.foreach_learner(learn))
    assert (one[0], other[0]) == (0, 1) and one[1] == other[1] == 5
    assert one[2] != other[2], "they saw different batches"
    before, after = one[3:]
    assert same(before, other[3]) and same(after, other[4])
    learns = {"model.": True, "critic.": config.rl_gradient == "td3", "log_temperature": preset == "ODT"}
    learns["averaged_model."] = averaged_share is not None
    for prefix in (prefix for prefix, does in learns.items() if does):
        assert not same(before, after, prefix)


def test_what_fails_in_a_remote_learner_while_saving_or_restoring_is_raised(
    two_learners: Any, tmp_path: Path
) -> None:
    """RLlib would go on without the learner; this one says why, and both are there again afterwards."""

    def limited(most: int) -> Callable[[Any], None]:
        def limit(learner: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        return limit

    group = two_learners.learner_group
    group.foreach_learner(limited(2000))
    try:
        with pytest.raises(OSError, match="File too large"):
            two_learners.save_to_path(str(tmp_path / "full"))
    finally:
        group.foreach_learner(limited(resource.RLIM_INFINITY))
    whole = Path(two_learners.save_to_path(str(tmp_path / "whole")))
    largest = max((whole / "learner_group" / "learner").rglob("*.pkl"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    with pytest.raises((EOFError, UnpicklingError)):
        two_learners.restore_from_path(str(whole))
    assert [
        result.get() for result in group.foreach_learner(lambda learner: learner.config.num_learners)
    ] == [2, 2]


def test_remote_learners_are_stopped_between_their_calls(two_learners: Any, tmp_path: Path) -> None:
    two_learners.save_to_path(str(tmp_path / "before"))
    begin, before = time.monotonic(), two_learners.gradient_steps
    two_learners.stop_when(lambda: time.monotonic() > begin + 1)
    try:
        two_learners.updates.take(two_learners.offline_data.iterators(2), 10**6)
        assert 1 < two_learners.gradient_steps - before < 10**5
    finally:  # others share them
        two_learners.stop_when(lambda: False)
        two_learners.restore_from_path(str(tmp_path / "before"))
    assert two_learners.gradient_steps == before


def test_what_is_logged_is_the_mean_over_all_steps_whatever_the_calls_were(online: Configure) -> None:
    logged = []
    for pieces in ([5], [1, 3, 1]):
        algorithm = online(pretrain_steps=5).training(gradient_steps_per_iteration=5).build_algo()
        algorithm.updates._pieces = lambda steps, pieces=pieces: iter(pieces)
        logged.append(algorithm.train()["learners"]["default_policy"])
        algorithm.stop()
    one, other = logged
    assert one["gradient_steps"] == other["gradient_steps"] == 5
    for key in ("loss", "critic_loss", "q_mean", "lr"):
        assert one[key] == pytest.approx(other[key], rel=1e-6), key


def end_alike(algorithm: Any, quiet: Any) -> None:
    """Ends a run to which something happened, which is as the one to which nothing did."""
    assert algorithm.evaluate()["return_mean"] == quiet.evaluate()["return_mean"]
    assert algorithm.replay.counts == quiet.replay.counts
    np.testing.assert_array_equal(algorithm.replay.store.rewards, quiet.replay.store.rewards)
    assert same(state(algorithm), state(quiet))
    quiet.stop()
    algorithm.stop()


@pytest.mark.parametrize("stays_away", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_killed_runner_costs_nothing(online: Configure, stays_away: bool) -> None:
    """Episodes are functions of weights and numbers, so a lost part is run again and nothing is doubled."""
    import ray

    settings = {"env_steps_per_iteration": 400, "env_steps": 800}
    quiet = online(**settings).env_runners(num_env_runners=2).build_algo()
    train(quiet)
    config = online(**settings).env_runners(num_env_runners=2)
    algorithm = config.fault_tolerance(restart_failed_env_runners=True).build_algo()
    algorithm.train()
    group = algorithm.env_runner_group
    victim = group._worker_manager.actors()[group.healthy_worker_ids()[0]]
    ray.kill(victim, no_restart=stays_away)
    train(algorithm)
    if stays_away:
        assert group.num_healthy_remote_workers() == 1
    end_alike(algorithm, quiet)


class Dying(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum whose process is killed in the middle of an episode when a file asks for it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.folder, self.steps = folder, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 100 and (self.folder / "kill").exists():
            with contextlib.suppress(FileNotFoundError):  # another one was quicker
                (self.folder / "kill").unlink()
                (self.folder / "away").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


_first_here = True


def dying(folder: str) -> Dying:
    """Makes one; the first one of a new process has to wait until processes may come back."""
    global _first_here
    while _first_here and (Path(folder) / "away").exists():
        time.sleep(0.05)
    _first_here = False
    return Dying(Path(folder))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_killed_runners_that_stay_away_for_a_round_cost_nothing(
    online: Configure, tmp_path: Path
) -> None:
    """Each dies in its episode, and the other one does its part, also that of the whole next round."""
    spec = EnvSpec("Dying-v0", f"{__name__}:dying", kwargs={"folder": str(tmp_path)}).to_json()

    def build() -> Any:
        config = online(env_steps_per_iteration=400, env_steps=21 * 400, replay_capacity_trajectories=50)
        config.environment(spec).env_runners(num_env_runners=2)
        return config.fault_tolerance(restart_failed_env_runners=True).build_algo()

    quiet = build()
    train(quiet)
    algorithm = build()
    group, manager = algorithm.env_runner_group, algorithm.env_runner_group._worker_manager
    algorithm.train()
    for _ in range(10):
        (tmp_path / "kill").touch()
        algorithm.train()
        assert not (tmp_path / "kill").exists() and (tmp_path / "away").exists()
        algorithm.train()
        assert group.num_healthy_remote_workers() == 1
        (tmp_path / "away").unlink()
        while group.num_healthy_remote_workers() < 2:
            algorithm.restore_env_runners(group)
            time.sleep(0.05)
    assert manager.total_num_restarts() == 10
    train(algorithm)
    assert algorithm.rounds == quiet.rounds == 21
    end_alike(algorithm, quiet)


def test_an_exploding_critic_stops_the_run(online: Configure) -> None:
    algorithm = online(critic_lr=50.0, pretrain_steps=200, env_steps=0).build_algo()
    with pytest.raises(TrainingDiverged, match=r"critic's values exploded|critic's loss became"):
        for _ in range(60):
            algorithm.train()
    algorithm.stop()


@pytest.mark.parametrize(
    ("every", "seed"),
    [
        pytest.param(every, seed, marks=[] if seed == 0 else pytest.mark.long)
        for every in (400, 1000)
        for seed in range(20)
    ],
)
def test_rare_rewards_stop_no_healthy_run(
    online: Configure, pendulum_data: str, tmp_path: Path, every: int, seed: int
) -> None:
    """Most batches of such data hold no reward at all: bounds are for all rewards that are known, saved ones too."""
    store = load_dataset(pendulum_data)
    rare = np.zeros_like(store.rewards)
    rare[::every] = 1.0
    dataset = f"store:{replace(store, rewards=rare).save(tmp_path / 'rare')}"
    config = online(dataset=dataset, critic_width=256, env_steps=0, pretrain_steps=12)
    algorithm = config.debugging(seed=seed).build_algo()
    learner = algorithm.learner_group._learner
    assert learner._largest_reward == 1.0, "of the data, whatever the first batches hold"
    algorithm.train()
    assert algorithm.gradient_steps == 4
    seen = _window(algorithm)
    learner.rl_gradient.critic_step(learner, _batch(learner, replace(seen, rewards=seen.rewards + 30.0)))
    assert learner._largest_reward >= 30.0
    algorithm.save_to_path(str(tmp_path / "saved"))
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "saved"))
    assert resumed.learner_group._learner._largest_reward == learner._largest_reward
    for each in (algorithm, resumed):
        train(each)
        assert each.gradient_steps == 12
    assert same(state(algorithm), state(resumed))
    algorithm.stop()
    resumed.stop()


def test_a_cosine_ends_with_a_run_whose_episodes_are_shorter_than_the_logged_ones(
    online: Configure, tmp_path: Path
) -> None:
    config = online(env_steps=200, env_steps_per_iteration=1)
    config.environment(env_config={"max_episode_steps": 20})
    algorithm = config.training(lr=1e-3, lr_decay="cosine", warmup_steps=0).build_algo()
    assert algorithm.config.gradient_steps == 4 + 2 * 3, "the logged ones have 150 steps on average"
    rates = []
    for number in range(11):
        rates.append(algorithm.train()["learners"]["default_policy"]["lr"])
        if number == 5:
            algorithm.save_to_path(str(tmp_path / "half"))
    assert algorithm.done and algorithm.gradient_steps == 4 + 10 * 3
    expected = partial(scheduled_lr, 1e-3, warmup_steps=0, schedule="cosine")
    assert rates[0] == expected(3, total_steps=10)
    assert rates[1:] == [expected(6 + 3 * number, total_steps=34) for number in range(10)]
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "half"))
    assert [resumed.train()["learners"]["default_policy"]["lr"] for _ in range(5)] == rates[6:]
    assert same(state(algorithm), state(resumed))
    algorithm.stop()
    resumed.stop()


def test_a_cosine_ends_with_a_run_whose_rounds_are_longer_than_planned(online: Configure) -> None:
    """Its episodes have 200 steps, the logged ones 150 on average."""
    config = online(env_steps=600, env_steps_per_iteration=1, collect_before_update=200)
    algorithm = config.training(lr=1e-3, lr_decay="cosine", warmup_steps=0).build_algo()
    assert algorithm.config.gradient_steps == 4 + (4 - 1) * 3
    rates = []
    while not algorithm.done:
        rates.append(algorithm.train()["learners"]["default_policy"]["lr"])
    assert algorithm.gradient_steps == 4 + 2 * 3
    expected = partial(scheduled_lr, 1e-3, warmup_steps=0, schedule="cosine")
    assert rates == [expected(3, total_steps=13), expected(6, total_steps=10), expected(9, total_steps=10)]
    algorithm.stop()


def test_what_reads_the_progress_ends_with_the_run(online: Configure) -> None:
    """Of 13 planned gradient steps 10 are taken, since episodes have 200 steps and the logged ones 150 on average."""
    config = online(
        backbone="radt",
        rl_gradient="q_align",
        env_steps=600,
        env_steps_per_iteration=1,
        collect_before_update=200,
    )
    algorithm = config.build_algo()
    learner = algorithm.learner_group._learner
    take, seen = learner._take_step, []
    learner._take_step = lambda batch: (seen.append(batch.progress), take(batch))
    train(algorithm)
    assert seen == [*(step / 13 for step in range(4)), *(step / 10 for step in range(4, 10))]
    algorithm.stop()


def test_the_worth_of_entropy_is_none_of_a_critic_that_explodes(online: Configure) -> None:
    settings = {"rl_gradient": "sac", "head": "gaussian", "alpha": 1e-4, "alpha_pretrain": 1e-4}
    for entropy in (False, True):
        algorithm = online(**settings, entropy_in_targets=entropy).build_algo()
        algorithm.train()
        most = float(algorithm.learner_group._learner._largest_reward)
        assert most == pytest.approx(algorithm.config.largest_reward, rel=1e-6) or entropy
        assert most > 5 * algorithm.config.largest_reward or not entropy
        algorithm.stop()


@pytest.mark.parametrize("lr_decay", ["constant", "cosine"])
def test_pretraining_alone_takes_its_steps_whatever_comes_before_updates(
    online: Configure, lr_decay: str
) -> None:
    config = online(env_steps=0, collect_before_update=5000).training(lr_decay=lr_decay, warmup_steps=0)
    algorithm = config.build_algo()
    assert algorithm.config.gradient_steps == 4
    rate = algorithm.train()["learners"]["default_policy"]["lr"]
    assert algorithm.done and algorithm.gradient_steps == 4 and rate > 0
    algorithm.stop()


def test_what_diverges_in_one_of_two_learners_stops_both_in_one_line(two_learners: Any) -> None:
    """One that raised alone would leave the other in its next `all_reduce`, for half an hour."""

    def apply_a_loss_that_is_infinite_in_one(learner: Any) -> str | None:
        parameters = learner.networks.critic.parameters()
        loss = sum(parameter.sum() for parameter in parameters) + (float("inf") if learner._rank == 1 else 0)
        try:
            learner.descend("critic", loss, "the loss")
        except TrainingDiverged as error:
            return str(error)
        return None

    def raise_values_in_one(learner: Any) -> None:
        if learner._rank == 1:
            learner.networks.critic.q1[-1].bias.data += 1e12

    group = two_learners.learner_group
    found = [result.get() for result in group.foreach_learner(apply_a_loss_that_is_infinite_in_one)]
    assert len(found) == 2 and all(
        text.startswith("the loss became inf with a gradient of") for text in found
    )
    group.foreach_learner(raise_values_in_one)
    with pytest.raises(TrainingDiverged, match=r"^the critic's values exploded.*critic_lr$") as raised:
        two_learners.train()
    assert type(raised.value) is TrainingDiverged and "\n" not in str(raised.value)


def test_a_dead_learner_stops_the_run_in_one_line(online: Configure, tmp_path: Path) -> None:
    import ray

    config = online().learners(num_learners=2, num_cpus_per_learner=0)
    algorithm = config.build_algo()
    algorithm.train()
    algorithm.save_to_path(str(tmp_path / "saved"))
    ray.kill(algorithm.learner_group._workers[1])
    for act in (algorithm.train, algorithm.evaluate, lambda: algorithm.save_to_path(str(tmp_path / "late"))):
        with pytest.raises(UserError, match=r"^1 of 2 learners died; .*continue .* with --resume$") as raised:
            act()
        assert "\n" not in str(raised.value)
    algorithm.stop()
    resumed = online(env_steps=200).build_algo()
    resumed.restore_from_path(str(tmp_path / "saved"))
    train(resumed)
    resumed.stop()


def test_a_learner_that_dies_while_it_starts_is_one_line(online: Configure) -> None:
    config = online().learners(num_learners=2, num_cpus_per_learner=0)

    # A base that is known at run time alone is none to mypy.
    class Dies(config.learner_class):  # type: ignore[misc, name-defined]
        def build(self) -> None:
            os._exit(1)

    with pytest.raises(UserError, match=r"^a learner or an env runner died while .* --resume if") as raised:
        config.learners(learner_class=Dies).build_algo()
    assert "\n" not in str(raised.value)


def test_a_truncated_replay_is_named(online: Configure, tmp_path: Path) -> None:
    algorithm = online(env_steps=200).build_algo()
    train(algorithm)
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    file = tmp_path / "checkpoint" / "replay.npz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"replay.npz.*earlier checkpoint"):
        OnlineDT.from_checkpoint(str(tmp_path / "checkpoint"))


@pytest.mark.timeout(120)
def test_a_run_keeps_its_pretraining_and_one_that_did_not_ends_all_the_same(
    online: Configure, tmp_path: Path
) -> None:
    """Steps of pretraining that a run has taken and has no more would be taken for updates online."""
    algorithm = online().build_algo()
    for _ in range(2):
        algorithm.train()
    checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.config = algorithm.config.copy(copy_frozen=False).online(pretrain_steps=1)
    with pytest.raises(UserError, match=r"pretrain_steps is 1, .* learned with 4, .* set .* back"):
        algorithm.restore_from_path(checkpoint)
    (Path(checkpoint) / "fixed_settings.json").unlink()  # as of an earlier version
    algorithm.restore_from_path(checkpoint)
    algorithm.train()
    assert algorithm.done and (algorithm.env_steps, algorithm.gradient_steps) == (400, 7)
    algorithm.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "online.alpha is -0.1"),
        ({"action_regularization": -1}, "online.action_regularization is -1"),
        ({"averaged_share": 0}, "online.averaged_share is 0"),
        ({"averaged_share": 1.5}, "online.averaged_share is 1.5"),
        ({"rl_gradient": "td4"}, "Did you mean 'td3'"),
        ({"gamma": 1.5}, "online.gamma is 1.5"),
        ({"replay_capacity_trajectories": 0}, "replay_capacity_trajectories"),
        ({"replay_capacity_steps": 0}, "replay_capacity_steps"),
        ({"head": "gaussian"}, "td3 needs a deterministic policy.*ODT"),
        ({"backbone": "mlp"}, "mlp"),
        ({"critic_lr": 0}, "online.critic_lr is 0"),
        ({"reward_scale": 0}, "online.reward_scale is 0"),
        ({"updates_per_iteration": 0}, "updates_per_iteration"),
    ],
)
def test_bad_values_are_refused(online: Configure, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        online(**settings).validate()


@pytest.mark.parametrize("section", ["online", "training", "evaluation", "env_runners", "learners"])
def test_counts_are_whole_numbers(section: str) -> None:
    """1e3 is 1000, however it is written; 2.5 is refused before anything runs, in every section."""
    counts = {
        "online": (
            *("pretrain_steps", "env_steps", "env_steps_per_iteration", "updates_per_iteration"),
            *("actor_interval", "critic_width", "replay_capacity_trajectories", "replay_capacity_steps"),
            "max_policy_lag",
        ),
        "training": ("gradient_steps_per_iteration", "warmup_steps", "train_batch_size_per_learner"),
        "evaluation": (
            *("episodes_per_target", "max_evaluation_slots", "evaluation_context_length"),
            *("evaluation_interval", "evaluation_num_env_runners"),
        ),
        "env_runners": ("num_env_runners", "num_envs_per_env_runner"),
        "learners": ("num_learners",),
    }[section]
    file = {
        "algorithm": "OnlineDT",
        "offline_data": {"dataset": "recipe:pendulum-mixed"},
        "online": {"mode": "async"},
        "env_runners": {"num_env_runners": 1},
    }
    for written in ("1e3", "1.0e+3"):
        overrides = [f"{section}.{name}={written}" for name in counts]
        config = build_config(apply_overrides(file, overrides))
        values = [getattr(config, name) for name in counts]
        assert values == [1000] * len(counts) and {type(value) for value in values} == {int}
    for name in counts:
        values = apply_overrides(file, [f"{section}.{name}=2.5"])
        with pytest.raises(
            UserError, match=rf"{name} is 2.5; it must be a whole number of at least .*2(, or null)?$"
        ):
            build_config(values)


@pytest.mark.timeout(590)
@pytest.mark.long
def test_a_process_killed_five_times_ends_like_one_that_was_not(
    joining_ray: dict[str, str], pendulum_data: str, tmp_path: Path
) -> None:
    """kill -9 through the run folder, and on from its newest checkpoint: equal weights, replay and metrics."""
    import yaml

    config = tmp_path / "online.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "algorithm": "OnlineDT",
                "offline_data": {"dataset": pendulum_data},
                "rl_module": {"model_config": {"context_length": 4, "embed_dim": 16, "num_layers": 1}},
                "training": {"gradient_steps_per_iteration": 4, "train_batch_size_per_learner": 8},
                "online": {
                    "pretrain_steps": 4,
                    "env_steps": 1000,
                    "env_steps_per_iteration": 200,
                    "updates_per_iteration": 3,
                    "replay_capacity_trajectories": 6,
                },
                "evaluation": {"target_returns": "-1000", "episodes_per_target": 1, "evaluation_interval": 2},
            }
        )
    )
    script = (
        "import os, sys, signal\n"
        "from rayrl_dt.runs.config_files import read_yaml\n"
        "from pathlib import Path\n"
        "from rayrl_dt import OnlineDT\nfrom rayrl_dt.algorithms import algorithm\nfrom rayrl_dt.runs import loop\n"
        "moment, folder = sys.argv[3], Path(sys.argv[2])\n"
        "def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "class Killer:\n"
        "    def started(self, algorithm): pass\n"
        "    def stepped(self, step, loss):\n"
        "        if moment == f'step {step}': kill()\n"
        "    def iterated(self, record): pass\n"
        "if moment == 'collected': OnlineDT._take_in = kill\n"
        "if moment == 'writing': algorithm.save_bundle = kill\n"
        "loop.train(read_yaml(sys.argv[1]), folder, resume=folder.exists(), observer=Killer())\n"
    )

    def run(folder: Path, moment: str) -> int:
        command = [sys.executable, "-c", script, str(config), str(folder), moment]
        done = subprocess.run(command, capture_output=True, timeout=600, check=False, env=joining_ray)
        return done.returncode

    assert run(tmp_path / "whole", "never") == 0
    # Before there is a checkpoint, in a round, with episodes collected and not stored, in the middle of a checkpoint.
    for moment in ("step 2", "step 8", "collected", "writing", "step 18"):
        assert run(tmp_path / "killed", moment) == -9, moment
    assert run(tmp_path / "killed", "never") == 0
    from safetensors.numpy import load_file

    whole, killed = (
        load_file(tmp_path / name / "policy" / "policy.safetensors") for name in ("whole", "killed")
    )
    assert same(whole, killed)
    newest = [sorted((tmp_path / name / "checkpoints").iterdir())[-1] for name in ("whole", "killed")]
    assert newest[0].name == newest[1].name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    # What finetuning begins with is evaluated, and then every other iteration.
    assert [record["gradient_steps"] for record in logs[0] if "evaluation" in record][:3] == [4, 7, 13]
    timed = {"steps_per_s", "time_total_s", "env_steps_per_s", "evaluation"}
    for one, other in zip(*logs, strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }
        if "evaluation" in one:
            assert one["evaluation"]["targets"] == other["evaluation"]["targets"]
    with np.load(newest[0] / "replay.npz") as one, np.load(newest[1] / "replay.npz") as other:
        assert set(one.files) == set(other.files)
        for name in one.files:
            # What the logged episodes were asked for is unknown.
            assert np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f"), name
