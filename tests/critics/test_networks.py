"""Twin critics: shapes, independence, and what the actor's loss does to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

MakeStore = Callable[..., TrajectoryStore]
S, A, H = 3, 2, 16


@pytest.fixture
def spec(make_store: MakeStore) -> PolicySpec:
    return build_model(make_store()).spec


@pytest.fixture(params=[False, True], ids=["plain", "layer norm"])
def critic(request: pytest.FixtureRequest, spec: PolicySpec) -> TwinCritic:
    torch.manual_seed(0)
    return TwinCritic(spec, hidden=H, layer_norm=request.param)


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(*shape, S, generator=generator)
    return observations, torch.rand(*shape, A, generator=generator) * 2 - 1


def by_hand(critic: TwinCritic, observations: Tensor, actions: Tensor) -> Tensor:
    """Both values from the linear layers alone, the normalization written out; tells it from the names."""
    values = []
    for net in (critic.q1, critic.q2):
        linear = [layer for layer in net if isinstance(layer, nn.Linear)]
        normalized = any(isinstance(layer, nn.LayerNorm) for layer in net)
        assert [tuple(layer.weight.shape) for layer in linear] == [(H, S + A), (H, H), (1, H)]
        x = torch.cat([observations, actions], dim=-1)
        for layer in linear[:-1]:
            x = functional.linear(x, layer.weight, layer.bias)
            if normalized:
                centerd = x - x.mean(dim=-1, keepdim=True)
                x = centerd / (centerd.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
            x = x.clamp(min=0.0)
        values.append(functional.linear(x, linear[-1].weight, linear[-1].bias)[..., 0])
    return torch.stack(values)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4)])
def test_values_are_those_of_two_networks(critic: TwinCritic, shape: tuple[int, ...]) -> None:
    observations, actions = inputs(*shape)
    values = critic(observations, actions)
    assert values.shape == (2, *shape)
    torch.testing.assert_close(values, by_hand(critic, observations, actions))
    torch.testing.assert_close(critic.first(observations, actions), values[0])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_ensemble_begins_with_the_twins_and_answers_in_part(spec: PolicySpec, layer_norm: bool) -> None:
    """The first two are those of TD3 bit for bit; a gradient through `held` reaches the actions alone."""
    critics = []
    for ensemble in (2, 5):
        torch.manual_seed(0)
        critics.append(TwinCritic(spec, hidden=H, layer_norm=layer_norm, ensemble=ensemble))
    twins, five = critics
    observations, actions = inputs(4, 3)
    actions.requires_grad_()
    values = five(observations, actions)
    assert values.shape == (5, 4, 3) and torch.equal(values[:2], twins(observations, actions))
    assert len({round(float(each.sum()), 6) for each in values.detach()}) == 5
    assert torch.equal(five(observations, actions, members=[3, 1]), values[[3, 1]])
    torch.testing.assert_close(five.held(observations, actions), values)
    inner = five.held(observations, actions).mean()
    (slope,) = torch.autograd.grad(inner, actions, retain_graph=True)
    (wanted,) = torch.autograd.grad(values.mean(), actions)
    torch.testing.assert_close(slope, wanted)
    assert {"q1", "q2", "q3", "q4", "q5"} == {name for name, _ in five.named_children()}


def test_layer_norm_is_an_option_without_parameters(spec: PolicySpec) -> None:
    plain, normalized = (TwinCritic(spec, hidden=H, layer_norm=on) for on in (False, True))
    assert {n: p.shape for n, p in plain.q1[0].named_parameters()} == {"weight": (H, S + A), "bias": (H,)}
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in normalized.parameters())
    observations, actions = inputs(50)
    # Normalized layers do not see the size of what comes in (but for the biases, which are removed here).
    for model in (plain, normalized):
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
    with torch.no_grad():
        torch.testing.assert_close(
            plain(observations * 100, actions * 100), 100 * plain(observations, actions)
        )
        torch.testing.assert_close(
            normalized(observations * 100, actions * 100),
            normalized(observations, actions),
            rtol=0.01,
            atol=0.01,
        )
        assert normalized(observations, actions).std() > 0.02


def test_both_start_as_pytorch_starts_and_differ(spec: PolicySpec) -> None:
    torch.manual_seed(0)
    critic = TwinCritic(spec)
    torch.manual_seed(0)
    reference = [nn.Linear(*widths) for _ in range(2) for widths in ((S + A, 256), (256, 256), (256, 1))]
    ours = [layer for layer in critic.modules() if isinstance(layer, nn.Linear)]
    for layer, expected in zip(ours, reference, strict=True):
        assert torch.equal(layer.weight, expected.weight) and torch.equal(layer.bias, expected.bias)
    values = critic(*inputs(20))
    assert (values[0] != values[1]).all()


def test_each_learns_from_its_own_error(critic: TwinCritic) -> None:
    observations, actions = inputs(4, 5)
    target = torch.zeros(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    values = critic(observations, actions)
    losses.td3_critic_loss(torch.stack([values[0], values[1].detach()]), target, mask).backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in critic.q1.parameters())
    assert all(p.grad is None or (p.grad == 0).all() for p in critic.q2.parameters())


@pytest.mark.parametrize("normalize", [False, True])
def test_the_actor_loss_moves_actions_up_the_first_critic_and_leaves_it_alone(
    critic: TwinCritic, normalize: bool
) -> None:
    mask = torch.tensor([[False, True, True, True, True]] * 2 + [[True] * 5])
    observations, actions = inputs(3, 5)
    critic.requires_grad_(False)
    actions.requires_grad_()
    values = critic.first(observations, actions)
    losses.td3_actor_loss(values, mask, normalize=normalize).backward()
    assert all(parameter.grad is None for parameter in critic.parameters())

    again = actions.detach().requires_grad_()
    (slope,) = torch.autograd.grad(by_hand(critic, observations, again)[0].sum(), again)
    scale = values.detach()[mask].abs().mean() if normalize else 1.0
    torch.testing.assert_close(actions.grad, torch.where(mask[..., None], -slope / 13 / scale, 0.0))
    assert (slope != 0).any()


def gradients(critic: TwinCritic, dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    """Of both values' weighted sum: with respect to the weights, the observations and the actions."""
    observations, actions = (values.requires_grad_() for values in inputs(4, 5))
    evaluate = (
        by_hand(critic, observations, actions) if dtype is None else critic(observations, actions, dtype)
    )
    weights = torch.linspace(-1.0, 2.0, evaluate.numel()).view_as(evaluate)
    return torch.autograd.grad((evaluate * weights).sum(), [*critic.parameters(), observations, actions])


def test_gradients_are_those_of_autograd(critic: TwinCritic) -> None:
    expected = gradients(critic, None)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)
    torch.testing.assert_close(gradients(critic, torch.float32), expected)


def test_a_graph_that_is_kept_may_be_asked_again(critic: TwinCritic) -> None:
    values, weights = critic(*inputs(4, 5)).sum(), list(critic.parameters())
    first = torch.autograd.grad(values, weights, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(values, weights), first)


def test_half_precision_rounds_the_hidden_product_alone(critic: TwinCritic) -> None:
    observations, actions = inputs(4, 5)
    with torch.no_grad():
        exact, rough = (critic(observations, actions, dtype) for dtype in (torch.float32, torch.bfloat16))
        first = critic.first(observations, actions, torch.bfloat16)
    assert rough.dtype == torch.float32 and torch.equal(first, rough[0])
    assert 0 < (rough - exact).abs().max() < 0.02 * exact.abs().max()
    for one, other in zip(gradients(critic, torch.bfloat16), gradients(critic, None), strict=True):
        assert one.dtype == torch.float32
        assert functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.95


def test_discrete_actions_are_refused(make_store: MakeStore) -> None:
    spec = build_model(make_store(actions=4)).spec
    with pytest.raises(UserError, match=r"Discrete\(4\).*finetune without a critic"):
        TwinCritic(spec)


def test_images_are_refused(spec: PolicySpec) -> None:
    image = replace(spec, observation_space=gym.spaces.Box(0, 255, (8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"\(8, 8, 3\).*FlattenObservation"):
        TwinCritic(image)
