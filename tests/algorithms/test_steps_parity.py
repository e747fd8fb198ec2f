"""Gradient steps of the learners against the same steps written from the papers in plain torch.

The networks' forwards have parity tests of their own (tests/models); here are losses, optimizers, schedules and orders.
All weights begin scrambled, those of slow copies apart from what they follow. The steps of TD3+BC, IQL and CQL are in
baselines/test_memoryless.py. RLlib's learners need no Ray.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import scramble
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor, nn

from rayrl_dt import BCConfig, DTConfig, OnlineDTConfig, ReinformerConfig
from rayrl_dt.algorithms.offline_data import SequenceOfflineData
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.seeding import derive_seed, torch_generator

K, BATCH, ACTIONS, STEPS, WARMUP, CLIP = 4, 8, 2, 7, 5, 0.1
PRETRAINING = 3
"""Of the steps, where finetuning is trained; what follows is online."""


@pytest.fixture
def dataset(make_store: Callable[..., TrajectoryStore], tmp_path: Path) -> str:
    make_store(action_dim=ACTIONS).save(tmp_path / "data")
    return f"store:{tmp_path / 'data'}"


def configured(config: Any, dataset: str, **model: Any) -> Any:
    small = {"context_length": K, "embed_dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1}
    return (
        config.offline_data(dataset=dataset)
        .rl_module(model_config={**small, **model})
        .training(
            train_batch_size_per_learner=BATCH,
            warmup_steps=WARMUP,
            lr=2e-3,
            weight_decay=0.05,
            grad_clip=CLIP,
            precision="fp32",
        )
    )


def built(config: Any) -> tuple[Any, list[Any], Any]:
    """A learner with scrambled weights, the batches of its first steps, and a copy of its module to train by hand."""
    data = SequenceOfflineData(config)
    spec = config.resolved_spec
    spaces = {DEFAULT_MODULE_ID: (spec.observation_space, spec.action_space)}
    learner = config.build_learner(spaces=spaces)
    learner.build()
    module = learner.sequence_module
    for seed, (name, network) in enumerate(module.named_children()):
        scramble(network, seed)
        for parameter in network.parameters():
            # A tanh far out would have no gradient.
            parameter.data *= 0.5 if name.endswith("model") else 1.0
    copied = copy.deepcopy(module)
    (source,) = data.iterators(0)
    batches = [arrays.to_torch() for arrays in source.batches(rank=0, first_step=0, count=STEPS)]
    assert not all(window.mask.all() for window in batches), "or padding would not be tested"
    return learner, batches, copied


def train(learner: Any, batches: list[Any]) -> None:
    class Source:
        def batches(self, *, rank: int, first_step: int, count: int) -> Iterator[Any]:
            return iter(batches)

    learner.update(training_data=TrainingData(data_iterators=[Source()]), num_iters=len(batches))
    assert learner.gradient_step == len(batches)


def warm(lr: float, policy_steps: int) -> float:
    return lr * min((policy_steps + 1) / WARMUP, 1.0)


def gradients(loss: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def clipped(found: list[Tensor]) -> list[Tensor]:
    norm = torch.sqrt(sum((g.square().sum() for g in found), torch.zeros(())))
    assert norm > 1.5 * CLIP, "or the test would not see the clipping"
    return [g * CLIP / norm for g in found]


class Moments:
    """Adam's bias-corrected direction m / (sqrt(v) + eps) of each tensor, and what three optimizers make of it."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = list(module.parameters())
        self.m = [torch.zeros_like(w) for w in self.weights]
        self.v = [torch.zeros_like(w) for w in self.weights]
        self.count = 0

    def directions(self, found: list[Tensor]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        self.count += 1
        for place, g in enumerate(found):
            self.m[place] = 0.9 * self.m[place] + 0.1 * g
            self.v[place] = 0.999 * self.v[place] + 0.001 * g**2
            m = self.m[place] / (1 - 0.9**self.count)
            v = self.v[place] / (1 - 0.999**self.count)
            yield self.weights[place], m / (v.sqrt() + 1e-8)

    @torch.no_grad()
    def adamw(self, found: list[Tensor], lr: float, decay: float) -> None:
        for w, direction in self.directions(found):
            w.copy_(w * (1 - lr * decay) - lr * direction)

    @torch.no_grad()
    def lamb(self, found: list[Tensor], lr: float, decay: float) -> None:
        for w, direction in self.directions(found):
            u = direction + decay * w
            ratio = w.norm() / u.norm() if w.norm() > 0 and u.norm() > 0 else 1.0
            w.copy_(w - lr * ratio * u)


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        ours, theirs = one, other
        if name.endswith("qkv.bias"):
            # The softmax ignores a key's bias: its gradient is rounding, which Adam blows up.
            ours, theirs = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (one, other))
        torch.testing.assert_close(
            ours, theirs, rtol=2e-4, atol=5e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def model_actions(window: Any, model: Any) -> Tensor:
    return ((window.actions - model.action_middle) / model.action_half).clamp(-1, 1)


def mse(outputs: Tensor, window: Any, model: Any) -> Tensor:
    """Over the real steps and all action dimensions alike."""
    return ((outputs - model_actions(window, model)) ** 2)[window.mask].mean()


@pytest.mark.parametrize("kind", ["DT", "BC", "Reinformer", "Reinformer, one network"])
def test_supervised_steps_are_the_papers(dataset: str, kind: str) -> None:
    """AdamW on everything, linear warm-up, global clipping; Reinformer's expectile of returns beside the actions."""
    config = {"DT": DTConfig, "BC": BCConfig}.get(kind, ReinformerConfig)()
    options: dict[str, Any] = {"shared_networks": True} if kind.endswith("one network") else {}
    if kind == "BC":
        options = {"backbone": "no-return"}
    learner, batches, copied = built(configured(config, dataset, **options).training(gradient_steps=STEPS))
    model = copied.model.train()
    optimizer = Moments(model)
    for step, window in enumerate(batches):
        model.reseed(derive_seed(0, "dropout", 0, step))
        if kind.startswith("Reinformer"):
            features, predicted = model.trunk.features_and_returns(model.inputs(window))
            wanted = (window.returns_to_go[..., 0] / model.spec.return_scale)[window.mask]
            u = (wanted - predicted[window.mask]) / wanted.abs().mean()
            loss = mse(torch.tanh(model.head(features)), window, model)
            loss = loss + ((0.99 - (u < 0).float()).abs() * u**2).mean()
        else:
            loss = mse(model(window), window, model)
        found = clipped(gradients(loss, optimizer.weights))
        optimizer.adamw(found, warm(2e-3, step), 0.05)
    train(learner, batches)
    assert_same(learner.sequence_module.model, model)


def online(dataset: str, *, head: str = "deterministic", **settings: Any) -> Any:
    settings = {"pretrain_steps": PRETRAINING, "critic_width": 16, **settings}
    return configured(OnlineDTConfig(), dataset, head=head).online(**settings)


def test_odt_steps_are_the_papers(dataset: str) -> None:
    """NLL - lambda H by LAMB, then lambda by Adam towards H = -A; the warm-up goes on through the phases."""
    learner, batches, copied = built(
        online(dataset, head="gaussian", rl_gradient="none", temperature_lr=0.03, initial_temperature=0.2)
    )
    model, log_temperature = copied.model.train(), copied.log_temperature
    with torch.no_grad():
        for each in (log_temperature, learner.networks.log_temperature):
            each.fill_(-1.0)
    policy = Moments(model)
    temperature = Moments(nn.ParameterList([log_temperature]))
    for step, window in enumerate(batches):
        model.reseed(derive_seed(0, "dropout", 0, step))
        mean, raw = model(window).double().chunk(2, dim=-1)
        log_std = -5 + 3.5 * (torch.tanh(raw) + 1)
        normal = torch.distributions.Normal(mean, log_std.exp())
        wanted = model_actions(window, model).double().clamp(-1 + 1e-6, 1 - 1e-6)
        log_prob = (normal.log_prob(torch.atanh(wanted)) - torch.log(1 - wanted**2)).sum(dim=-1)
        noise = torch.randn(BATCH, K, ACTIONS, generator=torch_generator(0, "online-noise", 0, step))
        drawn = mean + log_std.exp() * noise
        surprise = (normal.log_prob(drawn) - torch.log(1 - torch.tanh(drawn) ** 2)).sum(dim=-1)
        entropy = -surprise[window.mask].mean()
        loss = -log_prob[window.mask].mean() - log_temperature.detach().exp() * entropy
        found = clipped(gradients(loss.float(), policy.weights))
        policy.lamb(found, warm(2e-3, step), 0.05)
        balance = log_temperature.exp() * (entropy.detach().float() + ACTIONS)
        temperature.adamw(gradients(balance, temperature.weights), 0.03, 0.0)
    train(learner, batches)
    assert_same(learner.networks.model, model)
    assert abs(float(log_temperature) + 1.0) > 0.02
    torch.testing.assert_close(learner.networks.log_temperature, log_temperature)


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer norm"])
@pytest.mark.parametrize("interval", [1, 2])
def test_td3_odt_steps_are_the_papers(dataset: str, interval: int, layer_norm: bool) -> None:
    """Equations 2 and 3: the critics, at every `interval`-th step the policy, then both slow copies.

    The policy's learning rate steps with the policy; the slow copies begin finetuning anew.
    """
    settings = {"alpha": 0.3, "alpha_pretrain": 0.2, "bc_weight": 0.7, "polyak": 0.1, "reward_scale": 4.0}
    critics = {"critic_lr": 3e-3, "critic_layer_norm": layer_norm, "actor_interval": interval, "gamma": 0.9}
    learner, batches, copied = built(online(dataset, **settings, **critics))
    model, slow_model = copied.model.train(), copied.target_model.eval()
    policy, critic = Moments(model), Moments(copied.critic)
    norm = nn.LayerNorm(16, elementwise_affine=False) if layer_norm else nn.Identity()

    def value(twins: Any, number: int, observations: Tensor, actions: Tensor) -> Tensor:
        first, second, last = (m for m in (twins.q1, twins.q2)[number] if isinstance(m, nn.Linear))
        hidden = torch.relu(norm(first(torch.cat([observations, actions], -1))))
        return last(torch.relu(norm(second(hidden))))[..., 0]

    policy_steps = count()
    for step, window in enumerate(batches):
        if step == PRETRAINING:
            slow_model.load_state_dict(model.state_dict())
            copied.target_critic.load_state_dict(copied.critic.state_dict())
        since = step if step < PRETRAINING else step - PRETRAINING
        alpha, bc = (0.2, 1.0) if step < PRETRAINING else (0.3, 0.7)
        noise = torch.randn(BATCH, K, ACTIONS, generator=torch_generator(0, "online-noise", 0, step))
        inputs, following = model.inputs(window), model.inputs(window.next)
        with torch.no_grad():
            ahead = (slow_model(window.next) + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1 + 1e-6, 1 - 1e-6)
            later = [value(copied.target_critic, n, following.observations, ahead) for n in (0, 1)]
            y = window.rewards / 4 + 0.9 * ~window.terminated * torch.minimum(*later)
        both = [value(copied.critic, n, inputs.observations, inputs.actions) for n in (0, 1)]
        error = sum(((q - y) ** 2)[window.mask].mean() for q in both)
        critic.adamw(gradients(error, critic.weights), 3e-3, 0.01)
        if since % interval:
            continue
        model.reseed(derive_seed(0, "dropout", 0, step))
        own = model(window)
        q = value(copied.critic, 0, inputs.observations, own)[window.mask].mean()
        loss = bc * mse(own, window, model) - alpha * q
        policy.lamb(clipped(gradients(loss, policy.weights)), warm(2e-3, next(policy_steps)), 0.05)
        with torch.no_grad():
            for slow, fast in ((slow_model, model), (copied.target_critic, copied.critic)):
                for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
                    one.copy_(0.9 * one + 0.1 * other)
    assert next(policy_steps) == (STEPS if interval == 1 else 4)
    train(learner, batches)
    for name in ("model", "critic", "target_model", "target_critic"):
        assert_same(getattr(learner.networks, name), getattr(copied, name))


def test_what_a_filter_hides_shapes_no_policy(
    make_store: Callable[..., TrajectoryStore], tmp_path: Path
) -> None:
    """`below_return` pretends that episodes do not exist: no mean, bound or scale knows of them."""
    store = make_store(lengths=(3, 5, 8, 13))
    best = int(store.episode_returns.argmax())
    steps = slice(store.starts[best], store.starts[best] + store.lengths[best])
    for values in (store.actions, store.observations, store.rewards):
        values[steps] += 700
    anywhere = gym.spaces.Box(-np.inf, np.inf, store.actions.shape[1:])
    info = replace(store.info, action_space=anywhere)
    episodes = [store.trajectory(number) for number in range(store.num_episodes)]
    found = []
    for name, kept in (("all", episodes), ("alone", [*episodes[:best], *episodes[best + 1 :]])):
        TrajectoryStore.from_trajectories(kept, info).save(tmp_path / name)
        config = DTConfig().offline_data(dataset=f"store:{tmp_path / name}", below_return=500.0)
        SequenceOfflineData(config)
        found.append(config.resolved_spec)
    one, other = (replace(spec, normalizer=None, dataset="", metadata={}) for spec in found)
    np.testing.assert_array_equal(found[0].normalizer.mean, found[1].normalizer.mean)
    np.testing.assert_array_equal(found[0].normalizer.std, found[1].normalizer.std)
    assert one == other
