"""TD3+BC, IQL and CQL: a step of each by hand, training through RLlib, what comes back, what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import scramble
from torch import Tensor

from rayrl_dt import CQLConfig, IQLConfig, SequencePolicy, TD3BCConfig, UserError, load_dataset
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.losses import squashed_gaussian_log_prob
from rayrl_dt.reports.run_report import write_report
from rayrl_dt.runs import loop as runs
from rayrl_dt.runs.config_files import build_config, read_yaml
from rayrl_dt.seeding import torch_generator

pytestmark = pytest.mark.ray

CONFIGS = Path(__file__).parents[3] / "tune_configs"
PRESETS: dict[str, Any] = {"TD3BC": TD3BCConfig, "IQL": IQLConfig, "CQL": CQLConfig}


@pytest.fixture
def configure(ray_session: None, pendulum_data: str) -> Callable[..., Any]:
    """Returns a function that configures a run of seconds."""

    def make(name: str, *, dataset: str = pendulum_data, steps: int = 8, **training: Any) -> Any:
        return (
            PRESETS[name]()
            .offline_data(dataset=dataset)
            .rl_module(model_config={"embed_dim": 16})
            .training(
                gradient_steps=steps,
                gradient_steps_per_iteration=4,
                train_batch_size_per_learner=8,
                critic_width=16,
                precision="fp32",
                **training,
            )
            .evaluation(target_returns="dataset:1", episodes_per_target=2)
        )

    return make


def state(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    found = algorithm.learner_group.get_weights()["default_policy"]
    return {name: np.asarray(value) for name, value in found.items()}


def finish(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    while not algorithm.done:
        algorithm.train()
    return state(algorithm)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def batches(algorithm: Any, count: int) -> list[Any]:
    """The transitions of the first gradient steps."""
    (source,) = algorithm.offline_data.iterators(0)
    return [window.to_torch() for window in source.batches(rank=0, first_step=0, count=count)]


def scrambled(*networks: torch.nn.Module) -> list[Any]:
    """Give networks weights that matter, so that a slow copy is not what it follows; return copies of them."""
    for seed, network in enumerate(networks):
        scramble(network, seed)
    return [copy.deepcopy(network) for network in networks]


def adam(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=3e-4)


def polyak(slow: torch.nn.Module, network: torch.nn.Module) -> None:
    with torch.no_grad():
        for target, value in zip(slow.parameters(), network.parameters(), strict=True):
            target.copy_(0.995 * target + 0.005 * value)


def assert_same_weights(found: torch.nn.Module, wanted: torch.nn.Module) -> None:
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")


def units(model: Any, window: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, actions and next observations of transitions, as the networks see them."""
    observations, following = (
        model.to_model_observations(w.observations)[:, 0] for w in (window, window.next)
    )
    return observations, model.to_model_actions(window.actions)[:, 0], following


def test_td3bc_takes_the_steps_of_the_paper(configure: Callable[..., Any]) -> None:
    """Fujimoto and Gu 2021, algorithm of TD3 with equation 5, written out; policy and slow copies at every second."""
    algorithm = configure("TD3BC", steps=4, reward_scale=1.0).build_algo()
    learner = algorithm.learner_group._learner
    module = learner.networks
    networks = (module.model, module.critic, module.target_model, module.target_critic)
    policy, critic, slow_policy, slow_critic = scrambled(*networks)
    actor_adam, critic_adam = adam(policy), adam(critic)

    def act(network: Any, inputs: Tensor) -> Tensor:
        return torch.tanh(network.head(network.trunk.layers(inputs)))

    for step, window in enumerate(batches(algorithm, 4)):
        observations, actions, following = units(policy, window)
        with torch.no_grad():
            noise = torch.randn(8, 1, 1, generator=torch_generator(0, "online-noise", 0, step))[:, 0]
            ahead = (act(slow_policy, following) + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
            lower = slow_critic(following, ahead).amin(dim=0)
            target = window.rewards[:, 0] + 0.99 * lower * ~window.terminated[:, 0]
        error = (critic(observations, actions) - target).square().mean(dim=1).sum()
        critic_adam.zero_grad()
        error.backward()
        critic_adam.step()
        if step % 2 == 0:
            own = act(policy, observations)
            values = critic(observations, own)[0]
            weight = 2.5 / values.abs().mean().detach()
            actor_adam.zero_grad()
            (-weight * values.mean() + (own - actions).square().mean()).backward()
            actor_adam.step()
            polyak(slow_policy, policy)
            polyak(slow_critic, critic)
    algorithm.train()
    for found, wanted in zip(networks, (policy, critic, slow_policy, slow_critic), strict=True):
        assert_same_weights(found, wanted)
    algorithm.stop()


@pytest.mark.parametrize("head", ["deterministic", "gaussian"])
def test_iql_takes_the_steps_of_the_paper(configure: Callable[..., Any], head: str) -> None:
    """Kostrikov et al. 2022, equations 5 to 7, written out."""
    config = configure("IQL", steps=4, reward_scale=2.0, lr_decay="constant", weight_cap=0.27)
    algorithm = config.rl_module(model_config={"embed_dim": 16, "head": head}).build_algo()
    module = algorithm.learner_group._learner.sequence_module
    policy, critic = scrambled(module.model, module.critic)
    policy_adam, value_adam, q_adam = adam(policy), adam(critic.value), adam(critic.q)
    seen = []
    for window in batches(algorithm, 4):
        observations, actions, following = units(policy, window)
        with torch.no_grad():
            ahead = critic.value(following)[:, 0] * ~window.terminated[:, 0]
            target = window.rewards[:, 0] / 2 + 0.99 * ahead
            lower = critic.target(observations, actions).amin(dim=0)
            weights = torch.exp(3 * (lower - critic.value(observations)[:, 0])).clamp(max=0.27)
        seen.append(weights)
        error = lower - critic.value(observations)[:, 0]
        value_adam.zero_grad()
        (torch.where(error > 0, 0.7, 0.3) * error.square()).mean().backward()
        value_adam.step()
        q_adam.zero_grad()
        (critic.q(observations, actions) - target).square().mean(dim=1).sum().backward()
        q_adam.step()
        polyak(critic.target, critic.q)
        outputs = policy.head(policy.trunk.layers(observations))
        if head == "gaussian":
            fit = -squashed_gaussian_log_prob(*policy.spec.head.law(outputs), actions)
        else:
            fit = (torch.tanh(outputs) - actions).square().mean(dim=1)
        policy_adam.zero_grad()
        (weights * fit).mean().backward()
        policy_adam.step()
    drawn = torch.cat(seen)
    assert (drawn == 0.27).any() and (drawn < 0.27).any()
    algorithm.train()
    for found, wanted in ((module.model, policy), (module.critic, critic)):
        assert_same_weights(found, wanted)
    algorithm.stop()


@pytest.mark.parametrize(
    ("alpha", "scale", "calibrated"), [(0.0, 2, False), (10.0, 2, False), (10.0, 400, True)]
)
def test_cql_takes_the_steps_of_the_paper(
    configure: Callable[..., Any], alpha: float, scale: int, calibrated: bool
) -> None:
    """Kumar et al. 2020, equation 4 with appendix F, on soft actor-critic; alpha 0 is that alone, written out.

    Calibrated as in Nakamoto et al. 2023 (invariant 21): the policy's actions are valued at the return of the data at
    least, and random ones are not; `scale` brings returns to where these critics' values are.
    """
    rates = {"lr": 3e-4, "temperature_lr": 3e-4, "calibrated": calibrated}
    algorithm = configure(
        "CQL", steps=4, alpha=alpha, num_actions=3, reward_scale=scale, **rates
    ).build_algo()
    raised: list[bool] = []
    module = algorithm.learner_group._learner.networks
    policy, critic, slow = scrambled(module.model, module.critic, module.target_critic)
    log_temperature = torch.zeros((), requires_grad=True)
    policy_adam, critic_adam = adam(policy), adam(critic)
    temperature_adam = torch.optim.Adam([log_temperature], lr=3e-4)

    def draw(observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `(n, 8, A)` and their log-density `(n, 8)`."""
        mean, log_std = policy.spec.head.law(policy.head(policy.trunk.layers(observations)))
        inside = mean + log_std.exp() * noise
        normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(inside)
        return torch.tanh(inside), (normal - torch.log(1 - torch.tanh(inside) ** 2)).sum(dim=-1)

    for step, window in enumerate(batches(algorithm, 4)):
        observations, actions, following = units(policy, window)
        generator = torch_generator(0, "cql-noise", 0, step)
        # Draws are (8, n, A): each transition's side by side.
        ahead, here, there = (torch.randn(8, n, 1, generator=generator).transpose(0, 1) for n in (1, 3, 3))
        uniform = (2 * torch.rand(8, 3, 1, generator=generator) - 1).transpose(0, 1)
        with torch.no_grad():
            lower = slow(following, draw(following, ahead[0])[0]).amin(dim=0)
            target = window.rewards[:, 0] / scale + 0.99 * lower * ~window.terminated[:, 0]
            own, own_density = draw(observations, here)
            later, later_density = draw(following, there)
            density = torch.cat([own_density, later_density, torch.full((3, 8), math.log(0.5))]).exp()
            candidates = torch.cat([own, later, uniform])
        values = critic(observations.expand(9, 8, 3), candidates)
        logged = critic(observations, actions)
        if calibrated:
            floor = window.discounted_returns[:, 0] / scale
            raised += (values < floor).flatten().tolist()
            values = torch.cat([torch.where(values > floor, values, floor)[:, :6], values[:, 6:]], dim=1)
        integral = (values.exp() / density).mean(dim=1)
        gap = (integral.log() - logged).mean(dim=1).sum()
        critic_adam.zero_grad()
        ((logged - target).square().mean(dim=1).sum() + alpha * gap).backward()
        critic_adam.step()
        taken, log_density = draw(observations, torch.randn(8, 1, 1, generator=generator)[:, 0])
        temperature = log_temperature.detach().exp()
        policy_adam.zero_grad()
        (temperature * log_density - critic(observations, taken).amin(dim=0)).mean().backward()
        policy_adam.step()
        temperature_adam.zero_grad()
        (log_temperature.exp() * (-log_density.detach().mean() + 1)).backward()
        temperature_adam.step()
        polyak(slow, critic)
    algorithm.train()
    for found, wanted in ((module.model, policy), (module.critic, critic), (module.target_critic, slow)):
        assert_same_weights(found, wanted)
    assert log_temperature != 0
    assert not calibrated or 0.05 < np.mean(raised) < 0.95
    torch.testing.assert_close(module.log_temperature, log_temperature)
    algorithm.stop()


@pytest.mark.parametrize(("spread", "falls"), [(-2.0, False), (0.0, True)])
def test_cql_holds_its_entropy_and_lowers_the_gap(
    configure: Callable[..., Any], pendulum_data: str, tmp_path: Path, spread: float, falls: bool
) -> None:
    """Too little entropy raises the temperature; where the data keep to one side, their actions come to stand out."""
    store = load_dataset(pendulum_data)
    sided = [replace(episode, actions=np.abs(episode.actions)) for episode in map(store.trajectory, range(6))]
    dataset = f"store:{store.from_trajectories(sided, store.info).save(tmp_path / 'sided')}"
    algorithm = configure("CQL", dataset=dataset, steps=60, lr=1e-12, critic_lr=1e-2).build_algo()
    module = algorithm.learner_group._learner.networks
    with torch.no_grad():
        # The second half of the head's outputs spreads the actions.
        module.model.head.weight[1:] = 0.0
        module.model.head.bias[1:] = spread
    gaps = []
    while not algorithm.done:
        learner = algorithm.train()["learners"]["default_policy"]
        gaps.append(learner["conservative_gap"])
    assert (learner["entropy"] > -1) == falls
    assert (module.log_temperature.item() < 0) == falls
    assert gaps[-1] < gaps[0] - 0.3
    observations = torch.zeros(1, 3)
    inside, outside = (module.critic(observations, torch.full((1, 1), side)) for side in (0.5, -0.5))
    assert (inside > outside).all()
    algorithm.stop()


@pytest.mark.parametrize("name", PRESETS)
def test_it_trains_resumes_exactly_and_acts(configure: Callable[..., Any], tmp_path: Path, name: str) -> None:
    whole = configure(name).build_algo()
    before = state(whole)
    after = finish(whole)
    moved = [n for n in before if not np.array_equal(before[n], after[n])]
    assert {n.split(".")[0] for n in moved} >= {"model", "critic"}
    # Env runners hold the policy alone.
    assert not any("critic" in n for n in whole.env_runner.module.get_state())
    half = configure(name).build_algo()
    half.train()
    half.save_to_path(str(tmp_path / "half"))
    half.stop()
    resumed = type(whole).from_checkpoint(str(tmp_path / "half"))
    assert same(after, finish(resumed))
    evaluation = whole.evaluate()["alignment"]
    assert evaluation == {**resumed.evaluate()["alignment"], "env_steps_per_s": evaluation["env_steps_per_s"]}
    whole.stop()
    resumed.stop()


def test_two_learners_stay_equal(configure: Callable[..., Any]) -> None:
    """Of CQL, which has a temperature too; IQL averages in the same place, TD3+BC learns as online finetuning does."""
    algorithm = configure("CQL", steps=4).learners(num_learners=2).build_algo()
    before = state(algorithm)
    algorithm.train()
    sums = algorithm.learner_group.foreach_learner(
        lambda learner: [float(p.double().sum()) for p in learner.sequence_module.parameters()]
    )
    one, other = (result.get() for result in sums)
    assert one == other and not same(before, state(algorithm))
    algorithm.stop()


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_is_like_any_other(ray_session: None, pendulum_data: str, tmp_path: Path, name: str) -> None:
    """By the preset's own file: training, the bundle, an evaluation of it, the page."""
    values = read_yaml(CONFIGS / f"{name.lower()}_hopper.yaml")
    values["environment"] = {}
    values["offline_data"]["dataset"] = pendulum_data
    values["training"].update(gradient_steps=8, gradient_steps_per_iteration=4)
    values["evaluation"].update(episodes_per_target=2, evaluation_interval=1)
    folder = tmp_path / "run"
    outcome = runs.train(values, folder)
    assert outcome.finished and np.isfinite(outcome.last["critic_loss"])
    policy = SequencePolicy.load(folder)
    policy.reset()
    assert policy.spec.action_space.contains(policy.act(np.zeros(3, np.float32)))
    (target,) = evaluate_bundle(folder, targets="dataset:1", episodes_per_target=2).targets
    assert len(target.returns) == 2
    assert write_report([folder], tmp_path / "report").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_the_values_are_those_of_the_papers(name: str) -> None:
    config: Any = build_config(read_yaml(CONFIGS / f"{name.lower()}_hopper.yaml"))
    preset = PRESETS[name]()
    for found in (config, preset):
        assert found.lr == (3e-5 if name == "CQL" else 3e-4)
        assert (found.critic_lr, found.train_batch_size_per_learner) == (3e-4, 256)
        assert (found.gamma, found.polyak, found.critic_width, found.grad_clip) == (0.99, 0.005, 256, None)
        model = found.sequence_model
        layers = 3 if name == "CQL" else 2
        assert (model.backbone, model.context_length, model.num_layers) == ("mlp", 1, layers)
        assert (model.embed_dim, model.dropout) == (256, 0)
        if name == "TD3BC":
            assert (found.alpha, found.actor_interval, found.lr_decay) == (2.5, 2, "constant")
        elif name == "CQL":
            assert (found.alpha, found.num_actions, found.initial_temperature) == (10, 4, 1)
            assert (found.temperature_lr, found.lr_decay, model.head) == (3e-5, "constant", "gaussian")
        else:
            assert (found.expectile, found.beta, found.weight_cap) == (0.7, 3, 100)
            assert found.lr_decay == "cosine"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("TD3BC", {"alpha": -1}, "alpha is -1"),
        ("TD3BC", {"actor_interval": 0}, "actor_interval is 0"),
        ("TD3BC", {"polyak": 0}, "polyak is 0"),
        ("TD3BC", {"objective": "pg", "critic_from": "x"}, "trains a critic of its own"),
        ("IQL", {"expectile": 1}, "expectile is 1"),
        ("IQL", {"beta": float("nan")}, "beta is nan"),
        ("IQL", {"weight_cap": 0}, "weight_cap is 0"),
        ("IQL", {"critic_lr": "fast"}, "critic_lr is 'fast'"),
        ("CQL", {"alpha": float("nan")}, "alpha is nan"),
        ("CQL", {"num_actions": 0}, "num_actions is 0"),
        ("CQL", {"calibrated": True, "alpha": 0}, "alpha is 0; set alpha, such as 10, or calibrated: false"),
        ("CQL", {"num_actions": 2.5}, "num_actions is 2.5"),
        ("CQL", {"initial_temperature": 0}, "initial_temperature is 0"),
    ],
)
def test_bad_values_are_refused(
    configure: Callable[..., Any], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        configure(name, **options).validate()


@pytest.mark.parametrize("name", PRESETS)
def test_what_does_not_fit_is_refused(configure: Callable[..., Any], cartpole_data: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} needs continuous actions.*algorithm: BC"):
        configure(name, dataset=cartpole_data).build_algo()
    for model in ({"backbone": "dt"}, {"context_length": 4}):
        with pytest.raises(UserError, match=rf"{name} is memoryless"):
            configure(name).rl_module(model_config=model).validate()
    heads = {"TD3BC": ("gaussian", "deterministic policy"), "CQL": ("deterministic", "stochastic policy")}
    if name in heads:
        head, message = heads[name]
        with pytest.raises(UserError, match=message):
            configure(name).rl_module(model_config={"head": head}).validate()
