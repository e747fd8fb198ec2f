"""IQL's critic: single steps against autograd, values known in closed form, what stops it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, scramble

from rayrl_dt import losses
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.training import CriticTraining, IQLTrainer, fit_critic, new_critic
from rayrl_dt.critics.transitions import Transitions, transitions_of
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import TrainingDiverged, UserError
from rayrl_dt.models.sequence_model import SequenceModel

MakeStore = Callable[..., TrajectoryStore]
SMALL = CriticTraining(steps=150, batch_size=16, hidden=16, precision="fp32")


@pytest.fixture
def store(make_store: MakeStore) -> TrajectoryStore:
    return make_store(lengths=(1, 2, 7, 30, 30))


@pytest.fixture
def model(store: TrajectoryStore) -> SequenceModel:
    return build_model(store)


def weights(critic: IQLCritic) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in critic.state_dict().items()}


def test_steps_are_those_of_autograd(store: TrajectoryStore, model: SequenceModel) -> None:
    critic = new_critic(model.spec, hidden=16, seed=0)
    scramble(critic)
    other = copy.deepcopy(critic)
    start = weights(critic)
    transitions = transitions_of(store, model)
    trainer = IQLTrainer(critic, transitions, SMALL, seed=0)
    learned = [*other.value.parameters(), *other.q.parameters()]
    optimizer = torch.optim.Adam(learned, lr=SMALL.lr)
    for step in range(5):
        batch = transitions.batch(torch.arange(step, 70, 5))
        trainer.step(batch)
        observations, actions = batch.pairs.split([3, 2], dim=1)
        following = other.value(batch.following)[:, 0].detach()
        target = losses.iql_target(batch.rewards, batch.terminated, following, gamma=0.99)
        lower = other.target(observations, actions).amin(dim=0)
        loss = losses.expectile_loss(other.value(observations)[:, 0], lower, expectile=0.7)
        loss = loss + losses.iql_critic_loss(other.q(observations, actions), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(other.target.parameters(), other.q.parameters(), strict=True):
                slow.lerp_(fast, 0.005)
    found, expected = weights(critic), weights(other)
    assert all((found[name] != start[name]).any() for name in found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_slow_copy_starts_equal(model: SequenceModel) -> None:
    critic = new_critic(model.spec, hidden=16, seed=0)
    for slow, fast in zip(critic.target.parameters(), critic.q.parameters(), strict=True):
        assert torch.equal(slow, fast) and not slow.requires_grad


def test_a_run_is_a_function_of_its_seed(store: TrajectoryStore, model: SequenceModel) -> None:
    state = torch.get_rng_state()
    first, again, other = (weights(fit_critic(model, store, SMALL, seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all((first[name] != other[name]).any() for name in first)
    assert torch.equal(state, torch.get_rng_state())


def test_batches_do_not_hang_on_how_steps_are_grouped(store: TrajectoryStore, model: SequenceModel) -> None:
    found = []
    for groups in ((150,), (99, 2, 49)):
        critic = new_critic(model.spec, hidden=16, seed=0)
        trainer = IQLTrainer(critic, transitions_of(store, model), SMALL, seed=0)
        for steps in groups:
            trainer.run(steps)
        assert trainer.steps_done == 150
        found.append(weights(critic))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_policy_is_left_alone(store: TrajectoryStore, model: SequenceModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_critic(model, store, SMALL)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_reaches_the_end(store: TrajectoryStore, model: SequenceModel) -> None:
    seen: list[tuple[int, int]] = []
    fit_critic(model, store, SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(100, 150), (150, 150)]


def chain(*, terminated: bool) -> Transitions:
    """A step of reward 1 from 0 to 1, and one of reward 2 (or 0, by another action) from 1 to 1."""
    return Transitions(
        pairs=torch.tensor([[0.0, 0.0], [1.0, 0.5], [1.0, -0.5]]),
        rewards=torch.tensor([1.0, 2.0, 0.0]),
        following=torch.tensor([[1.0], [1.0], [1.0]]),
        terminated=torch.tensor([False, terminated, terminated]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("terminated", [True, False])
def test_values_of_a_chain(make_store: MakeStore, terminated: bool) -> None:
    model = build_model(make_store(observation_dim=1, action_dim=1))
    critic = new_critic(model.spec, hidden=32, seed=0)
    training = CriticTraining(
        batch_size=32, lr=3e-3, gamma=0.5, expectile=0.7, polyak=0.05, hidden=32, precision="fp32"
    )
    transitions = chain(terminated=terminated)
    IQLTrainer(critic, transitions, training, seed=0).run(2_500)
    # V(1) lies between Q = 2 + c and Q = c, where 0.7 (2 + c - V) = 0.3 (V - c): V = 1.4 + c, c = 0 or V / 2.
    value = 1.4 if terminated else 2.8
    rest = 0.0 if terminated else value / 2
    with torch.no_grad():
        found = critic.q(transitions.pairs[:, :1], transitions.pairs[:, 1:])
        assert critic.value(torch.tensor([[1.0]])).item() == pytest.approx(value, abs=0.2)
    expected = torch.tensor([1 + value / 2, 2 + rest, rest])
    torch.testing.assert_close(found, expected.expand(2, 3), rtol=0, atol=0.2)


def test_nan_stops_it(store: TrajectoryStore, model: SequenceModel) -> None:
    transitions = transitions_of(store, model)
    rewards = transitions.rewards.clone()
    rewards[::2] = torch.nan
    trainer = IQLTrainer(
        new_critic(model.spec, hidden=16, seed=0), transitions._replace(rewards=rewards), SMALL, seed=0
    )
    with pytest.raises(TrainingDiverged, match="nan"):
        trainer.run(1)


def test_exploding_values_stop_it(store: TrajectoryStore, model: SequenceModel) -> None:
    critic = new_critic(model.spec, hidden=16, seed=0)
    with torch.no_grad():
        critic.q.q1[-1].bias.fill_(1e5)
    trainer = IQLTrainer(critic, transitions_of(store, model), SMALL, seed=0)
    with pytest.raises(
        TrainingDiverged, match=r"mean is 5e\+04 at gradient step 1.*lower the learning rate \(--lr\)"
    ):
        trainer.run(1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "whole number"),
        ("batch_size", 2.5, "whole number"),
        ("hidden", True, "whole number"),
        ("lr", 0.0, "above 0"),
        ("lr", float("nan"), "nan"),
        ("gamma", 1.5, "above 0 and of at most 1"),
        ("expectile", 1.0, "above 0 and below 1"),
        ("polyak", 0.0, "above 0 and of at most 1"),
        ("precision", "fp8", "bf16"),
    ],
)
def test_bad_settings_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CriticTraining(**{name: value})


def test_a_discrete_policy_has_no_critic(make_store: MakeStore) -> None:
    store = make_store(actions=4)
    with pytest.raises(UserError, match="a critic takes continuous actions"):
        fit_critic(build_model(store), store, SMALL)


def test_half_precision_learns_nearly_the_same(store: TrajectoryStore, model: SequenceModel) -> None:
    transitions = transitions_of(store, model)
    values = []
    for precision in ("fp32", "bf16"):
        critic = fit_critic(model, store, replace(SMALL, steps=300, lr=3e-3, precision=precision))
        with torch.no_grad():
            values.append(critic.q(transitions.pairs[:, :3], transitions.pairs[:, 3:]).numpy())
    assert values[0].std() > 0.1 and (values[0] != values[1]).any()
    assert np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1] > 0.98
