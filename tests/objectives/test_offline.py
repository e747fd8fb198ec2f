"""PG and AWAC: their gradients, and what leaves them as they are (methods: section 9, 27 and 28)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from builders import build_model, pad, random_window, scramble
from torch import Tensor, nn

from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.losses import advantage_weights, td3_actor_loss
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.objective import BC_LOSS, Q_MEAN, Imitation, Objective
from rayrl_dt.objectives.offline import AdvantageWeighted, PolicyGradient
from rayrl_dt.types import Window

REAL = (6, 3, 1, 5)


class Scaled(TwinCritic):
    """A critic whose values are another's, times a factor, plus an offset."""

    def __init__(self, critic: TwinCritic, factor: float, offset: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.critic, self.factor, self.offset = critic, factor, offset

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        values: Tensor = self.factor * self.critic(observations, actions) + self.offset
        return values


@pytest.fixture(params=["dt", "radt", "reinformer", "mlp"])
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["deterministic", "gaussian"])
def model(
    make_store: Callable[..., TrajectoryStore], backbone: str, request: pytest.FixtureRequest
) -> SequenceModel:
    return build_model(make_store(), backbone=backbone, head=request.param)


@pytest.fixture
def critic(model: SequenceModel) -> TwinCritic:
    built = new_critic(model.spec, hidden=32, seed=0)
    scramble(built)
    return built.q.requires_grad_(False)


@pytest.fixture
def window(model: SequenceModel) -> Window[Tensor]:
    return random_window(model, REAL)


def gradient(
    objective: Objective, model: SequenceModel, critic: TwinCritic | None, window: Window[Tensor]
) -> Tensor:
    """With respect to all weights, as one vector."""
    loss = objective(model, critic, model(window), window).loss
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_without_weight_and_with_endless_temperature_it_is_imitation(
    model: SequenceModel, critic: TwinCritic, window: Window[Tensor]
) -> None:
    plain = gradient(Imitation(), model, None, window)
    assert torch.equal(gradient(PolicyGradient(0.0), model, critic, window), plain)
    endless = AdvantageWeighted(awac_temperature=1e30, awac_cap=100.0)
    assert torch.equal(gradient(endless, model, critic, window), plain)
    for other in (PolicyGradient(1.0), AdvantageWeighted(awac_temperature=1.0, awac_cap=100.0)):
        assert not torch.allclose(gradient(other, model, critic, window), plain, rtol=1e-2)


def test_the_scale_of_q_does_not_matter_to_pg(
    model: SequenceModel, critic: TwinCritic, window: Window[Tensor]
) -> None:
    found = [gradient(PolicyGradient(2.0), model, Scaled(critic, c), window) for c in (1.0, 64.0, 2.0**-8)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_pg_is_equation_9(model: SequenceModel, critic: TwinCritic, window: Window[Tensor]) -> None:
    """Against differences of the loss with the denominator held."""
    outputs = model(window).detach().requires_grad_()
    terms = PolicyGradient(0.7)(model, critic, outputs, window)
    steps = outputs.shape[1]
    observations, mask = model.inputs(window).observations[:, -steps:], window.mask[:, -steps:]
    values = critic(observations, model.spec.head.mode(outputs)).amin(dim=0)[mask]
    ratio = values.mean() / values.abs().mean().detach()
    expected = imitation_loss(model, outputs, window) - 0.7 * ratio
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = torch.autograd.grad(terms.loss, outputs)
    (wanted,) = torch.autograd.grad(expected, outputs)
    torch.testing.assert_close(found, wanted)
    assert terms.logged[Q_MEAN].item() == pytest.approx(values.mean().item(), rel=1e-5)
    assert not terms.logged[BC_LOSS].requires_grad and not terms.logged[Q_MEAN].requires_grad


def test_an_undetached_denominator_would_teach_nothing() -> None:
    """Why it is detached: with positive values the ratio is 1 whatever the policy does."""
    values, mask = torch.rand(4, 3).add(0.1).requires_grad_(), torch.ones(4, 3, dtype=torch.bool)
    (undetached,) = torch.autograd.grad(-(values.mean() / values.abs().mean()), values)
    assert undetached.abs().max() < 1e-7
    (ours,) = torch.autograd.grad(td3_actor_loss(values, mask, normalize=True), values)
    assert (ours < -0.01).all()


def test_awac_is_equation_10(model: SequenceModel, critic: TwinCritic, window: Window[Tensor]) -> None:
    outputs = model(window).detach().requires_grad_()
    objective = AdvantageWeighted(awac_temperature=0.5, awac_cap=3.0)
    steps = outputs.shape[1]
    mask = window.mask[:, -steps:]
    inputs = model.inputs(window)
    observations, logged = inputs.observations[:, -steps:], inputs.actions[:, -steps:]
    with torch.no_grad():
        own = critic(observations, model.spec.head.mode(outputs)).amin(dim=0)
        weights = torch.exp((critic(observations, logged).amin(dim=0) - own) / 0.5).clamp(max=3.0)
    assert (weights[mask] == 3).any() and (weights[mask] < 3).any()
    each = []
    for row, column in mask.nonzero().tolist():
        alone = torch.zeros_like(window.mask)
        alone[row, column - steps] = True
        cell = Window(window.returns_to_go, window.observations, window.actions, window.timesteps, alone)
        each.append(imitation_loss(model, outputs, cell) * weights[row, column])
    expected = torch.stack(each).mean()
    terms = objective(model, critic, outputs, window)
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = torch.autograd.grad(terms.loss, outputs)
    (wanted,) = torch.autograd.grad(expected, outputs)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "objective", [PolicyGradient(1.0), AdvantageWeighted(awac_temperature=0.5, awac_cap=10.0)]
)
def test_padding_has_no_influence_and_the_critic_no_gradient(
    model: SequenceModel, critic: TwinCritic, window: Window[Tensor], objective: Objective
) -> None:
    found = gradient(objective, model, critic, window)
    torch.testing.assert_close(gradient(objective, model, critic, pad(window, 1e6)), found)
    assert all(parameter.grad is None for parameter in critic.parameters())


def with_returns(window: Window[Tensor], returns: tuple[float, ...]) -> Window[Tensor]:
    """The window, of episodes of these raw returns."""
    steps = window.context_length
    return replace(window, episode_returns=torch.tensor(returns)[:, None].expand(-1, steps))


def test_adaptive_weights_fall_with_the_return_of_the_episode(model: SequenceModel) -> None:
    data = {**model.spec.data_returns, "p5": -10.0, "p95": 30.0}
    spec = replace(model.spec, data_returns=data)
    objective = PolicyGradient(8.0, "adaptive", pg_best=1.1, pg_floor=0.5)
    weights = objective.weights(spec, torch.tensor([-30.0, -10.0, 10.0, 30.0, 31.5, 60.0]))
    expected = [8 * 1.6, 8 * 1.1, 8 * 0.6, 8 * 0.1, 0.5, 0.5]
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_adaptive_pg_is_a_weight_for_each_window(
    model: SequenceModel, critic: TwinCritic, window: Window[Tensor]
) -> None:
    window = with_returns(window, (-30.0, 2.0, 11.0, 40.0))
    objective = PolicyGradient(3.0, "adaptive", pg_floor=0.25)
    outputs = model(window).detach().requires_grad_()
    steps = outputs.shape[1]
    inputs, mask = model.inputs(window), window.mask[:, -steps:]
    observations = inputs.observations[:, -steps:]
    values = critic(observations, model.spec.head.mode(outputs)).amin(dim=0)
    size = critic(observations, inputs.actions[:, -steps:]).amin(dim=0)[mask].mean().abs()
    low, high = model.spec.data_returns["p5"], model.spec.data_returns["p95"]
    total = torch.zeros(())
    for row, episode in enumerate((-30.0, 2.0, 11.0, 40.0)):
        weight = max(3.0 * (1 - (episode - low) / (high - low)), 0.25)
        total = total + weight * values[row][mask[row]].sum()
    expected = imitation_loss(model, outputs, window) - total / mask.sum() / size.detach()
    found = objective(model, critic, outputs, window).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, outputs)[0] for loss in (found, expected)))
    plain = gradient(Imitation(), model, None, window)
    assert torch.equal(gradient(PolicyGradient(0.0, "adaptive"), model, critic, window), plain)
    scaled = gradient(objective, model, Scaled(critic, 64.0), window)
    torch.testing.assert_close(scaled, gradient(objective, model, critic, window), rtol=1e-4, atol=1e-6)


def test_weights_are_finite_bounded_and_detached() -> None:
    advantages = torch.tensor([-1e30, -2.0, 0.0, 1.0, 50.0, 1e30], requires_grad=True)
    weights = advantage_weights(advantages, temperature=0.5, cap=100.0)
    assert not weights.requires_grad
    expected = torch.tensor([0.0, 0.0183156, 1.0, 7.389056, 100.0, 100.0])
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
