"""Losses as pure functions.

Shape legend: B batch, P predicted steps, K steps of a window, A action dimensions, M sampled actions, n discrete
actions.

Everywhere `mask` is bool, True at real steps. Other steps have no influence and get no gradient, whatever they hold.
All is computed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rayrl_dt.types import ACTION_LIMIT

__all__ = [
    "advantage_weights",
    "conservative_gap",
    "cross_entropy",
    "expectile_loss",
    "iql_critic_loss",
    "iql_target",
    "masked_mse",
    "reinformer_return_loss",
    "smooth_actions",
    "squashed_gaussian_entropy",
    "squashed_gaussian_log_prob",
    "squashed_gaussian_nll",
    "squashed_gaussian_sample",
    "td3_actor_loss",
    "td3_critic_loss",
    "td3_target",
    "temperature_loss",
]


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean squared error over real steps and action dimensions (Decision Transformer, section 3).

    Long windows weigh more than short ones: the mean is over steps, not over windows.

    Args:
        predicted: `(B, P, A)`.
        target: `(B, P, A)`.
        mask: `(B, P)` bool; steps that are False have no influence, whatever they hold.
        weights: `(B, P)` of the steps' errors; None for 1 each.
    """
    # Selecting before squaring keeps the gradient of padding at zero even where it holds infinities.
    error = (predicted.float() - target.float()).where(mask[..., None], 0.0)  # (B, P, A)
    error = error.square().mean(dim=-1)  # (B, P)
    return _mean(error if weights is None else error * weights, mask)


def cross_entropy(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the discrete actions of real steps.

    Args:
        logits: `(B, P, n)`.
        target: `(B, P)` int64 indices from 0; padding may hold any number.
        mask: `(B, P)` bool.
    """
    index = target.where(mask, 0).flatten()  # (B, P) -> (B P,)
    loss = functional.cross_entropy(logits.float().flatten(0, 1), index, reduction="none")
    return loss.where(mask.flatten(), 0.0).sum() / mask.sum()


def squashed_gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Log-density of actions under tanh(Normal(mean, exp(log_std))), dimensions independent.

    The policy of Online Decision Transformer (Zheng et al. 2022).

    Args:
        mean: `(..., A)` before the tanh.
        log_std: `(..., A)`.
        actions: `(..., A)` in [-1, 1]; clamped to +-`ACTION_LIMIT`.

    Returns:
        `(...)`, summed over the dimensions.
    """
    before_tanh = torch.atanh(actions.float().clamp(-ACTION_LIMIT, ACTION_LIMIT))
    standard = (before_tanh - mean.float()) * torch.exp(-log_std.float())
    return _log_prob(standard, log_std.float(), before_tanh)


def squashed_gaussian_nll(
    mean: Tensor, log_std: Tensor, actions: Tensor, mask: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the mean negative log-density of the actions of real steps (Online DT).

    Args:
        mean: `(B, P, A)` before the tanh.
        log_std: `(B, P, A)`.
        actions: `(B, P, A)` in [-1, 1].
        mask: `(B, P)`.
        weights: `(B, P)` of the steps; None for 1 each.
    """
    log_prob = squashed_gaussian_log_prob(
        *(_blank(values, mask) for values in (mean, log_std, actions))
    )  # (B, P)
    return -_mean(log_prob if weights is None else log_prob * weights, mask)


def squashed_gaussian_entropy(mean: Tensor, log_std: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """Return the mean entropy of the policy at real steps, from one reparameterized sample each (Online DT).

    Differs from the released code, which averages over padding too: there the entropy that the temperature holds at
    its target is partly that of steps which do not exist.

    Args:
        mean: `(B, P, A)` before the tanh.
        log_std: `(B, P, A)`.
        mask: `(B, P)`.
        noise: `(B, P, A)` standard normal.
    """
    mean, log_std, noise = (_blank(values, mask) for values in (mean, log_std, noise))
    return -_mean(_log_prob(noise, log_std, mean + log_std.exp() * noise), mask)


def squashed_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw actions with their log-density, both differentiable (soft actor-critic, appendix C).

    The density is that of the very number before the tanh, so it stays exact where the tanh rounds to 1, where
    `squashed_gaussian_log_prob` of the drawn action would not.

    Args:
        mean: `(..., A)` before the tanh.
        log_std: `(..., A)`.
        noise: `(..., A)` standard normal; may have more rows than the mean, to which that is broadcast.

    Returns:
        Actions `(..., A)` within +-`ACTION_LIMIT`, and `(...)`, summed over the dimensions.
    """
    mean, log_std, noise = mean.float(), log_std.float(), noise.float()
    before_tanh = mean + log_std.exp() * noise
    actions = torch.tanh(before_tanh).clamp(-ACTION_LIMIT, ACTION_LIMIT)
    return actions, _log_prob(noise, log_std, before_tanh)


def temperature_loss(log_temperature: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Return the dual of "entropy >= target": the temperature falls exactly when the entropy is above it (Online DT).

    Args:
        log_temperature: `()`, the only input that gets a gradient.
        entropy: `()` from `squashed_gaussian_entropy`.
        target_entropy: -A in the paper.
    """
    return log_temperature.float().exp() * (entropy.detach().float() - target_entropy)


def td3_target(rewards: Tensor, terminated: Tensor, next_values: Tensor, *, gamma: float) -> Tensor:
    """One-step target of all critics, r + gamma * min(Q1', Q2'), without the last term at terminal states.

    TD3+ODT, equation 3; REDQ and RLPD give the values of a few of an ensemble. Time limits are not terminal states.

    Args:
        rewards: `(B, K)` in the critics' units.
        terminated: `(B, K)` bool.
        next_values: `(M, B, K)` of the target critics at the next step.
        gamma: discount.

    Returns:
        `(B, K)`, detached.
    """
    lower = next_values.detach().float().amin(dim=0)  # (M, B, K) -> (B, K)
    return rewards.detach().float() + gamma * lower.masked_fill(terminated.bool(), 0.0)


def smooth_actions(actions: Tensor, noise: Tensor, *, scale: float = 0.2, clip: float = 0.5) -> Tensor:
    """Actions of the target policy with clipped noise (TD3's target policy smoothing; TD3+ODT, equation 3).

    Args:
        actions: `(..., A)` in [-1, 1].
        noise: `(..., A)` standard normal.
        scale: standard deviation of the noise.
        clip: largest change.

    Returns:
        `(..., A)` within +-`ACTION_LIMIT`.
    """
    moved = actions.float() + (scale * noise.float()).clamp(-clip, clip)
    return moved.clamp(-ACTION_LIMIT, ACTION_LIMIT)


def td3_critic_loss(values: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared errors of all critics, summed over the critics, averaged over real steps (TD3+ODT, equation 3).

    Differs from the released code, which divides by B * K: there batches with much padding teach less.

    Args:
        values: `(E, B, K)`.
        target: `(B, K)` from `td3_target`.
        mask: `(B, K)`.
    """
    error = (values.float() - target.float()).where(mask, 0.0)  # (E, B, K)
    return error.square().sum() / mask.sum().clamp(min=1)


def td3_actor_loss(values: Tensor, mask: Tensor, *, normalize: bool) -> Tensor:
    """Minus the mean value of the policy's actions at real steps (TD3+ODT, equation 2, the term that alpha weighs).

    Normalized, it is the term of TD3+BC and of PG (Action Gradient, equation 9).

    Args:
        values: `(B, P)`, Q of the policy's own actions.
        mask: `(B, P)`.
        normalize: divide by the mean absolute value, detached, so that the scale of the rewards does not matter
            (as TD3+BC does).
    """
    loss = -_mean(values.float(), mask)
    if normalize:
        size = _mean(values.detach().float().abs(), mask)
        loss = loss / size.clamp(min=torch.finfo(size.dtype).tiny)
    return loss


def advantage_weights(advantages: Tensor, *, temperature: float, cap: float) -> Tensor:
    """Return how much each logged action counts: exp(advantage / temperature), detached and bounded.

    AWAC (Action Gradient paper, equation 10) and IQL's policy extraction, whose beta is 1 / temperature.

    Args:
        advantages: `(...)`, how much better the logged action is than what it is compared with.
        temperature: towards infinity all weights become 1.
        cap: largest weight, which also keeps them finite.

    Returns:
        `(...)` in [0, cap].
    """
    # Bounded before the exponential, which overflows from 89 on.
    return (advantages.detach().float() / temperature).clamp(max=math.log(cap)).exp()


def expectile_loss(predicted: Tensor, target: Tensor, *, expectile: float) -> Tensor:
    """Return the mean of |tau - 1(u < 0)| u^2 with u = target - predicted (IQL; Action Gradient paper, equation 5).

    At tau = 1/2 it is half the squared error, and the best prediction is the target's mean; at tau towards 1 the best
    prediction rises towards the target's maximum.

    Args:
        predicted: `(...)`.
        target: `(...)`.
        expectile: tau, between 0 and 1.
    """
    error = target.float() - predicted.float()
    return (torch.where(error < 0, 1.0 - expectile, expectile) * error.square()).mean()


def reinformer_return_loss(predicted: Tensor, target: Tensor, mask: Tensor, *, expectile: float) -> Tensor:
    """Expectile loss of predicted returns-to-go at real steps, in units of their mean size (Reinformer, section 4).

    |tau - 1(u < 0)| u^2 with u = (R - predicted) / mean|R|: scaling all returns changes nothing. With tau towards 1 the
    prediction rises towards the highest return that the data show for the state. Where all returns are 0, u is the
    plain difference.

    Args:
        predicted: `(B, P)`, in the units of `target`.
        target: `(B, P)` returns-to-go.
        mask: `(B, P)`.
        expectile: tau, between 0 and 1.
    """
    wanted = target.detach().float().where(mask, 0.0)
    size = _mean(wanted.abs(), mask)
    error = (wanted - predicted.float().where(mask, 0.0)) / size.where(size > 0, 1.0)
    return _mean(torch.where(error < 0, 1.0 - expectile, expectile) * error.square(), mask)


def iql_target(rewards: Tensor, terminated: Tensor, next_values: Tensor, *, gamma: float) -> Tensor:
    """One-step target of both critics, r + gamma V(s'), without the last term at terminal states (IQL).

    No action of any policy enters: the critic never values what the data do not hold. Time limits are not terminal
    states.

    Args:
        rewards: `(B,)` in the critics' units.
        terminated: `(B,)` bool.
        next_values: `(B,)`, V of the next step's observation.
        gamma: discount.

    Returns:
        `(B,)`, detached.
    """
    ends = rewards.detach().float()
    return torch.where(terminated.bool(), ends, torch.add(ends, next_values.detach().float(), alpha=gamma))


def iql_critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each critic, summed over the critics (Action Gradient paper, equation 4).

    Args:
        values: `(2, B)`.
        target: `(B,)` from `iql_target`.
    """
    return (values.float() - target.float()).square().mean(dim=-1).sum()  # (2, B) -> (2,) -> ()


def conservative_gap(sampled: Tensor, log_density: Tensor, logged: Tensor) -> Tensor:
    """Return how far critics value all actions above the logged ones, softly (CQL, equation 4).

    log of the integral of exp Q(s, a) over the actions, less Q(s, a) of the logged action. The integral is an
    importance-weighted mean over M sampled actions (appendix F), so the gap is at least that of the mean,
    mean(Q - log density) - Q(s, a). A constant added to all values of a state changes nothing.

    Differs from the released code by log M, a constant: there it is a sum over the samples, and grows with them.

    Args:
        sampled: `(2, B, M)` values of the sampled actions.
        log_density: `(B, M)` of these under what each was drawn from; gets no gradient.
        logged: `(2, B)` values of the logged actions.

    Returns:
        `()`, summed over the critics, averaged over the batch.
    """
    weighted = sampled.float() - log_density.detach().float()  # (2, B, M)
    soft_maximum = weighted.logsumexp(dim=-1) - math.log(sampled.shape[-1])  # (2, B)
    return (soft_maximum - logged.float()).mean(dim=-1).sum()


def _log_prob(standard: Tensor, log_std: Tensor, before_tanh: Tensor) -> Tensor:
    """Log-density of tanh(x), x = `before_tanh`, whose standardized value is `standard`; `(..., A)` to `(...)`."""
    # All of (..., A), summed over the dimensions at last.
    normal = -0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(x)^2), which does not cancel where tanh(x) rounds to 1.
    slope = 2.0 * (math.log(2.0) - before_tanh - functional.softplus(-2.0 * before_tanh))
    return (normal - slope).sum(dim=-1)


def _blank(values: Tensor, mask: Tensor) -> Tensor:
    """Return `(B, P, A)` in float32 with zeros at padding, before anything there can become NaN."""
    return values.float().where(mask[..., None], 0.0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `(B, P)` over real steps."""
    return values.where(mask, 0.0).sum() / mask.sum()
