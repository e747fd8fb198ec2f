"""Vitamin's bandit: reward and data by hand, each loss against single networks, and that a critic finds the top."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayrl_dt.errors import UserError
from rayrl_dt.experiments import vitamin_bandit
from rayrl_dt.experiments.bandit_learners import Learners, Method, Stack
from rayrl_dt.experiments.vitamin_bandit import (
    METHODS,
    logged_actions,
    reward,
    train,
)

ODT, DDPG, COMBINED, FED = METHODS[:4]


def batch(learners: int, size: int = 7) -> tuple[Tensor, Tensor]:
    actions = torch.rand(learners, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return actions, reward(actions)


def single(stack: Stack, number: int, inputs: Tensor) -> Tensor:
    """The output of one network of a stack, by plain linear layers."""
    weights = [parameter[number] for parameter in stack.parameters]
    for layer in range(3):
        inputs = functional.linear(inputs, weights[2 * layer].T, weights[2 * layer + 1][0])
        inputs = inputs.relu() if layer < 2 else inputs
    return inputs[..., 0]


def gradients(loss: Tensor, stack: Stack) -> list[Tensor]:
    found = torch.autograd.grad(loss, stack.parameters, retain_graph=True)
    return list(found)


def test_the_reward_by_hand() -> None:
    actions = torch.tensor([-1.0, -0.95, -0.5, 0.0, 1e-6, 0.1, 0.5, 1.0])
    expected = torch.tensor([0.0, 0.0025, 0.25, 1.0, 1.0, 0.8, 0.0, -1.0])
    torch.testing.assert_close(reward(actions), expected, rtol=1e-4, atol=1e-5)


def test_the_data_lie_at_both_ends() -> None:
    actions = logged_actions(0, 3)
    assert actions.shape == (3, 128)
    low, high = actions[:, :100], actions[:, 100:]
    assert low.min() >= -1 and low.max() <= -0.95 and high.min() >= 0.5 and high.max() <= 1
    assert high.max() - high.min() > 0.45 and low.max() - low.min() > 0.045
    assert reward(actions).max() <= 0.00251
    assert (actions[0] != actions[1]).all() and torch.equal(logged_actions(0, 2), actions[:2])
    assert (logged_actions(1, 1) != actions[:1]).all()


def test_a_stack_is_many_networks() -> None:
    stack = Stack(torch.tensor([1.0, 1.0, 2.0, 2.0]), seed=0, stream="test", seeds=2)
    inputs = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    outputs = stack(inputs)
    assert outputs.shape == (4, 6)
    for number in range(4):
        torch.testing.assert_close(outputs[number], single(stack, number, inputs[number]))
    first, hidden = stack.parameters[0], stack.parameters[2]
    # Twin seeds differ; methods of one seed share their draw, scaled to the number of inputs (PyTorch's law).
    assert (first[0] != first[1]).any() and torch.equal(hidden[0], hidden[2])
    torch.testing.assert_close(first[0], first[2] * 2**0.5)
    assert 0.9 < first[:2].abs().max() <= 1 and 0.08 < hidden.abs().max() <= 128**-0.5


def test_odt_never_touches_a_critic() -> None:
    learners = Learners((ODT, DDPG), seeds=2, seed=0)
    actions, rewards = batch(4)
    before = gradients(learners.policy_loss(actions, rewards, online=True), learners.policies)
    with torch.no_grad():
        for parameter in learners.critics.parameters:
            parameter.mul_(3.0)
    after = gradients(learners.policy_loss(actions, rewards, online=True), learners.policies)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:2], other[:2])
    assert any((one[2:] != other[2:]).any() for one, other in zip(before, after, strict=True))
    # Trained beside others or alone, it does the same.
    together = train(seed=0, epochs=2, seeds=2, methods=(ODT, DDPG))[:, 0]
    other = train(seed=0, epochs=2, seeds=2, methods=(ODT, FED))[:, 0]
    torch.testing.assert_close(together, other)


def test_bc_weight_zero_leaves_the_critics_gradient_alone() -> None:
    learners = Learners((DDPG,), seeds=2, seed=0)
    actions, rewards = batch(2)
    found = gradients(learners.policy_loss(actions, rewards, online=True), learners.policies)
    elsewhere = gradients(learners.policy_loss(-actions, rewards, online=True), learners.policies)
    for number in range(2):
        asked = torch.stack([rewards[number], torch.zeros(7)], dim=-1)
        chosen = torch.tanh(single(learners.policies, number, asked))
        value = single(learners.critics, number, torch.stack([chosen, torch.zeros(7)], dim=-1)).mean()
        expected = gradients(-value, learners.policies)
        for one, same, wanted in zip(found, elsewhere, expected, strict=True):
            torch.testing.assert_close(one[number], wanted[number])
            assert torch.equal(one[number], same[number]), "the replayed actions have no say"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_losses_are_those_of_single_networks(method: Method) -> None:
    methods = (ODT, method) if method.q_weight else (method,)
    learners = Learners(methods, seeds=2, seed=0)
    number = len(methods) * 2 - 1
    actions, rewards = batch(len(methods) * 2)
    a, r = actions[number], rewards[number]
    fed = r if method.reward_fed else torch.zeros(7)
    chosen = torch.tanh(single(learners.policies, number, torch.stack([r, torch.zeros(7)], dim=-1)))
    loss = method.bc_weight * (chosen - a).square().mean()
    if method.q_weight:
        value = single(learners.critics, number, torch.stack([chosen, fed], dim=-1))
        loss = loss - method.q_weight * value.mean()
        error = single(learners.critics, number, torch.stack([a, fed], dim=-1)) - r
        for one, wanted in zip(
            gradients(learners.critic_loss(actions, rewards), learners.critics),
            gradients(error.square().mean(), learners.critics),
            strict=True,
        ):
            torch.testing.assert_close(one[number], wanted[number], rtol=1e-4, atol=1e-6)
    found = gradients(learners.policy_loss(actions, rewards, online=True), learners.policies)
    for one, wanted in zip(found, gradients(loss, learners.policies), strict=True):
        torch.testing.assert_close(one[number], wanted[number], rtol=1e-4, atol=1e-6)


def test_the_policy_step_leaves_the_critics_alone() -> None:
    learners = Learners((COMBINED,), seeds=2, seed=0)
    actions, rewards = batch(2)
    # Where the critics are right already, their own step has no gradient.
    with torch.no_grad():
        for parameter in learners.critics.parameters[-2:]:
            parameter.zero_()
    critics = [parameter.detach().clone() for parameter in learners.critics.parameters]
    policies = [parameter.detach().clone() for parameter in learners.policies.parameters]
    learners.update(actions, torch.zeros_like(rewards), online=True)
    assert all(map(torch.equal, critics, learners.critics.parameters))
    assert not all(map(torch.equal, policies, learners.policies.parameters))


@pytest.mark.slow
def test_all_methods_pretrain_alike() -> None:
    course = train(seed=0, epochs=1, seeds=2)
    assert course.shape == (2, len(METHODS), 2)
    start = course[0]
    assert torch.equal(start, start[:1].expand_as(start)) and (start[0, 0] != start[0, 1]).all()
    # Four passes over the 128 + 64 actions later, the losses have told them apart.
    assert len(set(course[1, :, 0].tolist())) == len(METHODS)


def test_a_critic_finds_the_top_and_imitation_does_not() -> None:
    rewards = reward(train(seed=0, epochs=16, seeds=3, methods=(ODT, DDPG)))
    imitation, critic = rewards[-1]
    assert imitation.max() < 0.1
    assert critic.median() > 0.8 and rewards[0].max() < 0.2


def test_the_experiment_is_a_function_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitamin_bandit, "COUNTED", (1, 40))
    done: list[tuple[int, int]] = []
    results = [
        vitamin_bandit.run(
            tmp_path / name, seed=seed, epochs=2, seeds=2, progress=lambda *at: done.append(at)
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert results[0] == results[1] != results[2]
    assert done == [(1, 2), (2, 2)] * 3
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == results[0]
    assert list(results[0]["methods"]) == [method.name for method in METHODS]
    for numbers in results[0]["methods"].values():
        assert (
            list(numbers["successes"]) == ["1", "2"] and len(numbers["action"]) == len(numbers["reward"]) == 3
        )
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Which loss finds the top" in page and page.count("data:image/png") == 2
    assert "Successes after 1" in page and "reward-fed critic" in page
    assert all((tmp_path / "a" / f"{name}.png").stat().st_size > 5_000 for name in ("actions", "rewards"))


@pytest.mark.parametrize("options", [{"epochs": 0}, {"seeds": 0}])
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(
        UserError, match=f"--{next(iter(options))} is 0; it must be a whole number of at least 1"
    ):
        vitamin_bandit.run(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
