"""Losses against hand-made numbers; padding (methods: online finetuning, section 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import trapezoid
from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.types import ACTION_LIMIT

MASK = torch.tensor([[False, False, True, True], [True, True, True, True], [False, False, False, True]])


def batch(loss: str) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 4, 5, generator=generator)
    if loss == "cross_entropy":
        return losses.cross_entropy, predicted, torch.randint(5, (3, 4), generator=generator)
    return losses.masked_mse, predicted, torch.randn(3, 4, 5, generator=generator)


def test_mse_is_the_mean_over_real_steps_and_dimensions() -> None:
    loss, predicted, target = batch("mse")
    real = MASK.numpy()
    expected = np.mean((predicted.numpy()[real] - target.numpy()[real]) ** 2)
    assert loss(predicted, target, MASK).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_is_the_mean_log_likelihood_of_real_steps() -> None:
    loss, logits, target = batch("cross_entropy")
    log_likelihood = logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    expected = -log_likelihood[MASK].mean().item()
    assert loss(logits, target, MASK).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
@pytest.mark.parametrize("garbage", [1e6, -1e6, float("inf"), float("nan")])
def test_padding_moves_neither_loss_nor_gradient(name: str, garbage: float) -> None:
    loss, predicted, target = batch(name)
    results = []
    for values in (target, target.masked_fill(~MASK.reshape(3, 4, *[1] * (target.dim() - 2)), 0)):
        changed = values.clone()
        if values is not target:
            changed[~MASK] = torch.tensor(garbage).to(changed.dtype)
        leaf = predicted.clone().requires_grad_()
        value = loss(leaf, changed, MASK)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][~MASK] == 0).all()
    assert (results[1][1][MASK] != 0).any(dim=-1).all()


def test_a_garbled_prediction_of_padding_has_no_gradient() -> None:
    loss, predicted, target = batch("mse")
    leaf = predicted.masked_fill(~MASK[..., None], torch.inf).requires_grad_()
    value = loss(leaf, target, MASK)
    value.backward()
    assert value.item() == loss(predicted, target, MASK).item()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_long_windows_weigh_more(name: str) -> None:
    loss, predicted, target = batch(name)
    rows = [loss(predicted[i : i + 1], target[i : i + 1], MASK[i : i + 1]) for i in range(3)]
    expected = sum(value * count for value, count in zip(rows, (2, 4, 1), strict=True)) / 7
    torch.testing.assert_close(loss(predicted, target, MASK), expected)


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_bf16_predictions_are_judged_in_fp32(name: str) -> None:
    loss, predicted, target = batch(name)
    value = loss(predicted.bfloat16(), target, MASK)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(predicted, target, MASK).item(), rel=0.02)


def test_an_impossible_action_at_a_real_step_is_an_error() -> None:
    loss, logits, target = batch("cross_entropy")
    target[1, 1] = 5
    with pytest.raises(IndexError):
        loss(logits, target, MASK)


def density(mean: float, log_std: float, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the library says of one-dimensional actions."""
    filled = [torch.full((len(actions), 1), value) for value in (mean, log_std)]
    log_prob = losses.squashed_gaussian_log_prob(*filled, torch.from_numpy(actions)[:, None])
    assert log_prob.shape == (len(actions),) and log_prob.dtype == torch.float32
    return log_prob.double().exp().numpy()


@pytest.mark.parametrize("log_std", [-5.0, -2.0, -0.5, 0.0, 2.0])
@pytest.mark.parametrize("mean", [0.0, -0.8, 1.5])
def test_the_squashed_density_integrates_to_one(mean: float, log_std: float) -> None:
    std = math.exp(log_std)
    edge = math.atanh(ACTION_LIMIT) - 0.5
    low, high = max(mean - 6 * std, -edge), min(mean + 6 * std, edge)
    actions = np.tanh(np.linspace(low, high, 20_001))
    integral = trapezoid(density(mean, log_std, actions), actions)
    # A wide Gaussian has mass beyond the last action that float32 tells from 1.
    expected = stats.norm(mean, std).cdf(high) - stats.norm(mean, std).cdf(low)
    assert expected > (0.9999 if log_std <= 0 else 0.5)
    assert integral == pytest.approx(expected, rel=2e-3)


def test_dimensions_of_an_action_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(3, 4, 5, generator=generator) for _ in range(3))
    actions = torch.tanh(noise)
    joint = losses.squashed_gaussian_log_prob(mean, log_std, actions)
    parts = [
        losses.squashed_gaussian_log_prob(*(x[..., i : i + 1] for x in (mean, log_std, actions)))
        for i in range(5)
    ]
    assert joint.shape == (3, 4)
    torch.testing.assert_close(joint, torch.stack(parts).sum(dim=0))


@pytest.mark.parametrize("bound", [-1.0, 1.0])
@pytest.mark.parametrize("log_std", [-5.0, 2.0])
def test_actions_at_the_bounds_count_as_just_inside(bound: float, log_std: float) -> None:
    mean = torch.tensor([[0.3]], requires_grad=True)
    spread = torch.tensor([[log_std]], requires_grad=True)
    values = [
        losses.squashed_gaussian_log_prob(mean, spread, torch.tensor([[bound * size]]))
        for size in (1.0, ACTION_LIMIT, 1.5)
    ]
    assert values[0] == values[1] == values[2]
    values[0].sum().backward()
    assert mean.grad.isfinite().all() and spread.grad.isfinite().all()
    distance = bound * math.atanh(ACTION_LIMIT) - 0.3
    assert mean.grad.item() == pytest.approx(distance / math.exp(2 * log_std), rel=0.02)


def test_gaussian_nll_is_the_mean_over_real_steps() -> None:
    loss, predicted, actions = gaussian_batch()
    mean, log_std = predicted.double().chunk(2, dim=-1)
    inside = torch.atanh(actions.double())
    normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(inside)
    expected = (normal - torch.log(1 - actions.double() ** 2)).sum(dim=-1)[MASK]
    assert loss(predicted, actions, MASK).item() == pytest.approx(-expected.mean().item(), rel=1e-4)


def gaussian_batch() -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor, Tensor]:
    """The likelihood loss as a function of the raw parameters side by side."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 4, 4, generator=generator) * 0.5
    actions = torch.tanh(torch.randn(3, 4, 2, generator=generator))
    return (lambda p, a, m: losses.squashed_gaussian_nll(*p.chunk(2, dim=-1), a, m)), predicted, actions


def entropy_batch() -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor, Tensor]:
    """The entropy as a function of the raw parameters side by side, and of the noise."""
    _, predicted, _ = gaussian_batch()
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    return (lambda p, n, m: losses.squashed_gaussian_entropy(*p.chunk(2, dim=-1), m, n)), predicted, noise


def critic_batch() -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor, Tensor]:
    """The critics' loss, with the two critics on the last axis."""
    generator = torch.Generator().manual_seed(0)
    values, target = (torch.randn(3, 4, *shape, generator=generator) for shape in ((2,), ()))
    return (lambda v, y, m: losses.td3_critic_loss(v.movedim(-1, 0), y, m)), values, target


def actor_batch(normalize: bool) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor, Tensor]:
    """The actor's loss of one value per step, which has no target."""
    values = torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(0))
    unused = torch.zeros(3, 4)
    return (lambda v, _, m: losses.td3_actor_loss(v[..., 0], m, normalize=normalize)), values, unused


ONLINE = {
    "nll": gaussian_batch,
    "entropy": entropy_batch,
    "critics": critic_batch,
    "actor": lambda: actor_batch(False),
    "normalized actor": lambda: actor_batch(True),
}


@pytest.mark.parametrize("name", list(ONLINE))
@pytest.mark.parametrize("garbage", [1e6, -1e6, float("inf"), float("nan")])
def test_padding_moves_no_online_loss(name: str, garbage: float) -> None:
    loss, predicted, target = ONLINE[name]()
    results = []
    for value in (0.0, garbage):
        leaf, other = predicted.clone(), target.clone()
        leaf[~MASK], other[~MASK] = value, value
        result = loss(leaf.requires_grad_(), other, MASK)
        result.backward()
        results.append((result.detach(), leaf.grad))
    assert results[0][0].isfinite() and results[0][0] != 0
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][~MASK] == 0).all()
    assert (results[1][1][MASK] != 0).any(dim=-1).all()


@pytest.mark.parametrize("name", list(ONLINE))
def test_online_losses_are_computed_in_fp32(name: str) -> None:
    loss, predicted, target = ONLINE[name]()
    value = loss(predicted.bfloat16(), target.bfloat16(), MASK)
    assert value.dtype == torch.float32 and value.shape == ()
    rounded = loss(predicted.bfloat16().float(), target.bfloat16().float(), MASK)
    assert torch.equal(value, rounded)


def true_entropy(mean: float, log_std: float) -> float:
    """Differential entropy of tanh(N(mean, std)) by quadrature over the Gaussian."""
    std = math.exp(log_std)
    x = np.linspace(mean - 10 * std, mean + 10 * std, 200_001)
    log_slope = np.log(4) - 2 * np.abs(x) - 2 * np.log1p(np.exp(-2 * np.abs(x)))
    gaussian = 0.5 * math.log(2 * math.pi * math.e) + log_std
    return float(gaussian + trapezoid(stats.norm(mean, std).pdf(x) * log_slope, x))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -5.0), (0.7, -2.0), (-1.0, 0.0), (0.0, 2.0), (3.0, 2.0)])
def test_the_entropy_estimate_is_unbiased(mean: float, log_std: float) -> None:
    count = 40_000
    noise = torch.randn(count, 2, 1, generator=torch.Generator().manual_seed(0))
    filled = [torch.full((count, 2, 1), value) for value in (mean, log_std)]
    mask = torch.tensor([[False, True]]).expand(count, 2)
    estimate = losses.squashed_gaussian_entropy(*filled, mask, noise).item()
    singles = [
        losses.squashed_gaussian_entropy(*(x[i : i + 1] for x in filled), mask[i : i + 1], noise[i : i + 1])
        for i in range(2_000)
    ]
    error = torch.stack(singles).std().item() / math.sqrt(count)
    assert estimate == pytest.approx(true_entropy(mean, log_std), abs=4 * error + 1e-4)
    assert error < 0.05


def test_the_entropy_of_two_dimensions_is_the_sum() -> None:
    noise = torch.randn(1, 50_000, 2, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.7, -1.0]).expand_as(noise)
    log_std = torch.tensor([-2.0, 0.0]).expand_as(noise)
    found = losses.squashed_gaussian_entropy(mean, log_std, torch.ones(1, 50_000, dtype=torch.bool), noise)
    assert found.item() == pytest.approx(true_entropy(0.7, -2.0) + true_entropy(-1.0, 0.0), abs=0.03)


def test_the_entropy_has_the_gradient_of_the_sample() -> None:
    """By finite differences, so that the mean and the spread both act through the drawn action."""
    loss, predicted, noise = entropy_batch()
    leaf = predicted.clone().requires_grad_()
    loss(leaf, noise, MASK).backward()
    for position in ((1, 2, 0), (1, 2, 3), (0, 3, 1), (2, 3, 2)):
        sides = []
        for change in (0.01, -0.01):
            moved = predicted.clone()
            moved[position] += change
            sides.append(loss(moved, noise, MASK).item())
        assert leaf.grad[position].item() == pytest.approx((sides[0] - sides[1]) / 0.02, abs=1e-3)
    assert leaf.grad[1, 2, 0].abs() > 0.01


@pytest.mark.parametrize(("entropy", "target"), [(1.0, -2.0), (-2.5, -2.0), (-2.0, -2.0), (0.5, 1.0)])
def test_the_temperature_falls_exactly_when_there_is_more_entropy_than_asked(
    entropy: float, target: float
) -> None:
    log_temperature = torch.tensor(math.log(0.1), requires_grad=True)
    measured = torch.tensor(entropy, requires_grad=True)
    loss = losses.temperature_loss(log_temperature, measured, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * (entropy - target))
    assert log_temperature.grad.item() == pytest.approx(0.1 * (entropy - target))
    assert measured.grad is None, "the temperature's loss must not train the policy"
    before = log_temperature.item()
    torch.optim.SGD([log_temperature], lr=1.0).step()
    assert (log_temperature.item() < before) == (entropy > target)
    assert (log_temperature.item() > before) == (entropy < target)


def test_the_target_bootstraps_from_the_lower_value_unless_the_step_ended_the_task() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, -4.0]])
    terminated = torch.tensor([[False, True, False, True]])
    next_values = torch.tensor([[[10.0, 10.0, -6.0, torch.inf]], [[20.0, 5.0, -7.0, torch.nan]]])
    target = losses.td3_target(rewards, terminated, next_values.requires_grad_(), gamma=0.5)
    assert target.tolist() == [[6.0, 2.0, -0.5, -4.0]]
    assert not target.requires_grad
    swapped = losses.td3_target(rewards, terminated, next_values.flip(0), gamma=0.5)
    assert torch.equal(swapped, target)


def test_smoothing_is_clipped_twice() -> None:
    actions = torch.tensor([0.0, 0.0, 0.0, 0.95, -0.95, 1.0])
    noise = torch.tensor([1.0, 9.0, -9.0, 1.0, -9.0, 0.0])
    limit = np.float32(ACTION_LIMIT)
    smoothed = losses.smooth_actions(actions, noise)
    np.testing.assert_allclose(smoothed, [0.2, 0.5, -0.5, limit, -limit, limit], rtol=1e-7)
    wider = losses.smooth_actions(actions, noise, scale=0.5, clip=0.7)
    np.testing.assert_allclose(wider, [0.5, 0.7, -0.7, limit, -limit, limit], rtol=1e-7)
    many = losses.smooth_actions(torch.rand(1000) * 2 - 1, torch.randn(1000) * 10)
    assert many.abs().max() == limit


def test_the_critic_loss_sums_over_critics_and_averages_over_real_steps() -> None:
    values = torch.tensor([[[1.0, 2.0, 9.0], [0.0, 0.0, 4.0]], [[3.0, 2.0, 9.0], [0.0, 0.0, 1.0]]])
    target = torch.tensor([[2.0, 4.0, 0.0], [7.0, 7.0, 1.0]])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    # (1 + 1) + (4 + 4) + (9 + 0), over 3 steps; the released code divides by 6.
    assert losses.td3_critic_loss(values, target, mask).item() == pytest.approx(19 / 3)


def test_the_actor_loss_is_minus_the_mean_value() -> None:
    values = torch.tensor([[1.0, -3.0, 100.0], [100.0, 100.0, 5.0]])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    assert losses.td3_actor_loss(values, mask, normalize=False).item() == pytest.approx(-1.0)
    assert losses.td3_actor_loss(values, mask, normalize=True).item() == pytest.approx(-1.0 / 3.0)
    zeros = losses.td3_actor_loss(torch.zeros(2, 3), mask, normalize=True)
    assert zeros.item() == 0.0


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_normalized_actor_loss_ignores_the_scale_of_rewards_but_has_a_gradient(factor: float) -> None:
    values = (torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) + 0.1).requires_grad_()
    losses.td3_actor_loss(values * factor, MASK, normalize=True).backward()
    # All values are positive: with the divisor attached, the loss would be constant.
    expected = -1.0 / values.detach()[MASK].sum()
    torch.testing.assert_close(values.grad[MASK], expected.expand(7))


SAMPLE = torch.tensor([0.0, 1.0, 4.0])


def expectile_of_sample(expectile: float) -> float:
    """The prediction with the smallest loss, by bisection of the slope."""
    low, high = -1.0, 5.0
    for _ in range(60):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        losses.expectile_loss(middle.expand(3), SAMPLE, expectile=expectile).backward()
        low, high = (middle.item(), high) if middle.grad < 0 else (low, middle.item())
    return (low + high) / 2


def test_the_middle_expectile_is_half_the_squared_error() -> None:
    _, predicted, target = batch("mse")
    loss = losses.expectile_loss(predicted, target, expectile=0.5)
    torch.testing.assert_close(loss, 0.5 * (predicted - target).square().mean())
    assert expectile_of_sample(0.5) == pytest.approx(5 / 3, abs=1e-5)


def test_expectiles_rise_to_the_maximum() -> None:
    found = [expectile_of_sample(expectile) for expectile in (0.01, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999)]
    assert found == sorted(found) and len(set(found)) == len(found)
    assert found[0] < 0.1 and found[-1] == pytest.approx(4.0, abs=1e-2)
    # tau sum of what lies above = (1 - tau) sum of what lies below: 0.7 (4 - x) = 0.3 (x + x - 1).
    assert found[3] == pytest.approx(31 / 13, abs=1e-5)


def test_errors_of_the_two_sides_weigh_differently() -> None:
    above = losses.expectile_loss(torch.zeros(1), torch.full((1,), 2.0), expectile=0.7)
    below = losses.expectile_loss(torch.zeros(1), torch.full((1,), -2.0), expectile=0.7)
    assert (above.item(), below.item()) == (pytest.approx(2.8), pytest.approx(1.2))


def test_a_terminal_step_is_worth_its_reward() -> None:
    rewards, terminated = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    values = torch.tensor([torch.inf, 10.0], requires_grad=True)
    target = losses.iql_target(rewards, terminated, values, gamma=0.9)
    assert target.tolist() == pytest.approx([1.0, 11.0]) and not target.requires_grad


def test_both_critics_learn_the_same_target() -> None:
    values = torch.tensor([[1.0, 2.0], [5.0, 2.0]], requires_grad=True)
    loss = losses.iql_critic_loss(values, torch.tensor([1.0, 4.0]))
    loss.backward()
    assert loss.item() == pytest.approx((0 + 4) / 2 + (16 + 4) / 2)
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, -2.0], [4.0, -2.0]]))


@pytest.mark.parametrize("expectile", [0.2, 0.5, 0.99])
def test_predicted_returns_are_compared_in_units_of_their_mean_size(expectile: float) -> None:
    target = torch.tensor([[4.0, -2.0, 3.0], [99.0, 1.0, 0.0]])
    mask = torch.tensor([[True, True, True], [False, True, True]])
    predicted = torch.tensor([[5.0, -3.0, 3.0], [-99.0, 0.0, 2.0]])
    size = (4 + 2 + 3 + 1 + 0) / 5
    expected = sum(
        abs(expectile - (r < p)) * ((r - p) / size) ** 2
        for r, p in ((4, 5), (-2, -3), (3, 3), (1, 0), (0, 2))
    )
    found = losses.reinformer_return_loss(predicted, target, mask, expectile=expectile)
    assert float(found) == pytest.approx(expected / 5, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1000.0])
def test_the_scale_of_returns_does_not_matter(scale: float) -> None:
    """Invariant 21: value and direction of the gradient stay, whatever unit both are in."""
    generator = torch.Generator().manual_seed(0)
    target, predicted = torch.randn(2, 8, 5, generator=generator)
    mask = torch.rand(8, 5, generator=generator) < 0.7
    found = []
    for factor in (1.0, scale):
        scaled = (factor * predicted).requires_grad_()
        loss = losses.reinformer_return_loss(scaled, factor * target, mask, expectile=0.9)
        loss.backward()
        assert scaled.grad is not None and (scaled.grad[~mask] == 0).all()
        found.append((loss.detach(), factor * scaled.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_high_expectile_predicts_the_best_return() -> None:
    """Invariant 20, for returns: the mean at 1/2, and towards the maximum as tau rises."""
    returns = torch.tensor([1.0, 2.0, 3.0, 10.0])
    best = []
    for expectile in (0.5, 0.9, 0.99, 0.999):
        guess = torch.linspace(0, 11, 11_001)
        rows = [
            losses.reinformer_return_loss(
                value.expand(1, 4), returns[None], torch.ones(1, 4, dtype=torch.bool), expectile=expectile
            )
            for value in guess[::10]
        ]
        best.append(float(guess[::10][torch.stack(rows).argmin()]))
    assert best[0] == pytest.approx(4.0, abs=0.02)
    assert best == sorted(best) and best[-1] > 9.9


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_returns_at_padding_do_not_count(garbage: float) -> None:
    mask = torch.tensor([[False, True]])
    clean = losses.reinformer_return_loss(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]), mask, expectile=0.9
    )
    predicted = torch.tensor([[garbage, 1.0]], requires_grad=True)
    loss = losses.reinformer_return_loss(predicted, torch.tensor([[garbage, 2.0]]), mask, expectile=0.9)
    loss.backward()
    assert torch.equal(loss, clean) and predicted.grad is not None and predicted.grad.isfinite().all()


def test_returns_of_zero_alone_can_be_learned() -> None:
    predicted, mask = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss = losses.reinformer_return_loss(predicted, torch.zeros(1, 2), mask, expectile=0.9)
    assert float(loss) == pytest.approx((0.1 + 0.9) / 2)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -5.0), (0.7, -1.0), (3.0, 2.0)])
def test_a_drawn_action_comes_with_its_density(mean: float, log_std: float) -> None:
    noise = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    center, spread = torch.full((4, 1, 2), mean), torch.full((4, 1, 2), log_std)
    actions, log_density = losses.squashed_gaussian_sample(center, spread, noise)
    inside = mean + math.exp(log_std) * noise.double()
    assert actions.shape == (4, 3, 2) and (actions.abs() <= ACTION_LIMIT).all()
    torch.testing.assert_close(actions.double(), torch.tanh(inside), rtol=0, atol=2e-6)
    normal = torch.distributions.Normal(mean, math.exp(log_std)).log_prob(inside)
    # 1 - tanh(x)^2 = 4 / (exp(x) + exp(-x))^2, which does not cancel.
    slope = math.log(4.0) - 2 * torch.logaddexp(inside, -inside)
    torch.testing.assert_close(log_density.double(), (normal - slope).sum(dim=-1), rtol=1e-4, atol=1e-4)


def gap_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sampled, log_density, logged = (
        torch.randn(*shape, generator=generator) for shape in ((2, 5, 7), (5, 7), (2, 5))
    )
    return sampled, log_density, logged


def test_the_conservative_gap_is_an_integral_over_the_actions() -> None:
    """Of exp(-8 (a - 0.3)^2), from uniform actions and from those of a policy elsewhere, in equal parts."""
    generator = torch.Generator().manual_seed(0)
    drawn, density = losses.squashed_gaussian_sample(
        torch.zeros(1), torch.tensor([0.3]), torch.randn(20_000, 1, generator=generator)
    )
    uniform = 2 * torch.rand(20_000, 1, generator=generator) - 1
    actions = torch.cat([drawn, uniform])[:, 0]
    log_density = torch.cat([density, torch.full((20_000,), -math.log(2.0))])[None]
    values = (-8 * (actions - 0.3) ** 2).expand(2, 1, -1)
    grid = np.linspace(-1, 1, 10_001)
    expected = math.log(trapezoid(np.exp(-8 * (grid - 0.3) ** 2), grid))
    gap = losses.conservative_gap(values, log_density, torch.tensor([[1.0], [3.0]]))
    assert gap.item() == pytest.approx(2 * expected - 4.0, abs=0.03)


def test_the_conservative_gap_is_above_that_of_the_mean() -> None:
    values, log_density, logged = gap_batch()
    gap = losses.conservative_gap(values, log_density, logged)
    plain = ((values - log_density).mean(dim=-1) - logged).mean(dim=-1).sum()
    assert gap > plain
    # Equal exactly where exp Q is in proportion to the density: then there is nothing to gain by choosing.
    flat = losses.conservative_gap(log_density.expand(2, -1, -1), log_density, torch.zeros(2, 5))
    assert flat.item() == pytest.approx(0.0, abs=1e-6)


def test_the_conservative_gap_falls_for_logged_actions_and_ignores_a_constant() -> None:
    values, log_density, logged = (tensor.requires_grad_() for tensor in gap_batch())
    losses.conservative_gap(values, log_density, logged).backward()
    assert values.grad is not None and logged.grad is not None
    torch.testing.assert_close(logged.grad, torch.full((2, 5), -1 / 5))
    torch.testing.assert_close(values.grad, torch.softmax(values - log_density, dim=-1).detach() / 5)
    assert log_density.grad is None
    moved = losses.conservative_gap(values + 1e2, log_density, logged + 1e2)
    torch.testing.assert_close(moved, losses.conservative_gap(values, log_density, logged), rtol=1e-4, atol=0)
