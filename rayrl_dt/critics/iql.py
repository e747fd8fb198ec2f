"""A step of implicit Q-learning on V and the twin Q: for a critic alone, and for one beside a policy.

V learns an expectile of Q over the data's actions, Q learns r + gamma V(s') (Kostrikov et al. 2022, equations 5 and 6;
Action Gradient, section 4). The lower one of the slow copies teaches V, and V(s') is read before V moves.

Shape legend: B batch, S observation dimensions, A action dimensions, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.passes import Layers, forward, layers_of, memory_for, parameter_gradients
from rayrl_dt.critics.slow_copy import OneVector, SlowCopy
from rayrl_dt.critics.transitions import Transitions

__all__ = ["IQLStep", "Outcome"]


class Outcome(NamedTuple):
    """What a gradient step saw, from before the step."""

    value: Tensor  # (B,) V(s)
    lower: Tensor  # (B,) lower one of the slow Q(s, a), which V follows
    q: Tensor  # (2, B)
    target: Tensor  # (B,) which both Q follow
    expectile: float

    @property
    def value_loss(self) -> Tensor:
        """The loss of V, `()`."""
        return losses.expectile_loss(self.value, self.lower, expectile=self.expectile)

    @property
    def critic_loss(self) -> Tensor:
        """The loss of both Q, `()`."""
        return losses.iql_critic_loss(self.q, self.target)


class IQLStep:
    """Writes out the gradients of a critic's losses, in two thirds of the time that autograd takes.

    An optimizer moves the weights by them, and then the slow copy follows.

    Args:
        critic: whose weights are where they are to stay; the slow copy gives them a new place.
        expectile: of V among the data's actions.
        gamma: discount.
        dtype: of the products, nearly all of the work.

    Attributes:
        parameters: of V, Q1 and Q2.
        gradients: of these, overwritten by each step.
        slow: moves the slow copy of Q.
        vectors: of all weights, in parts, each with that of its gradients.
    """

    def __init__(
        self, critic: IQLCritic, *, expectile: float, gamma: float, dtype: torch.dtype = torch.float32
    ) -> None:
        self._critic, self._expectile, self._gamma, self._dtype = critic, expectile, gamma, dtype
        parts = OneVector(critic.value.parameters()), OneVector(critic.q.parameters())
        self.slow = SlowCopy(critic.target, parts[1])
        found = [part.zeros() for part in parts]
        self.vectors = [(part.vector, gradients) for part, (gradients, _) in zip(parts, found, strict=True)]
        self.parameters = [*critic.value.parameters(), *critic.q.parameters()]
        self.gradients = [piece for _, pieces in found for piece in pieces]
        self._layers = [layers_of(network) for network in (critic.value, critic.q.q1, critic.q.q2)]
        self._slow_layers = [layers_of(network) for network in (critic.target.q1, critic.target.q2)]
        self._into = [Layers(*self.gradients[start : start + 6]) for start in (0, 6, 12)]
        self._memory = memory_for(self._layers[0], 0, dtype)

    @torch.no_grad()
    def take(self, batch: Transitions) -> Outcome:
        """Fill `gradients` with those of a batch, and return what it says."""
        count, expectile, (v, *twins) = len(batch.rewards), self._expectile, self._layers
        if len(self._memory.first) != count:
            self._memory = memory_for(v, count, self._dtype)
        memory, (v_into, *twins_into) = self._memory, self._into
        following = forward(v, batch.following, memory).values  # (B, S) -> (B,)
        target = losses.iql_target(batch.rewards, batch.terminated, following, gamma=self._gamma)
        # (B, S + A) -> (B,) by each of the two
        lower = torch.minimum(*(forward(slow, batch.pairs, memory).values for slow in self._slow_layers))
        observations = batch.pairs[:, : batch.following.shape[1]]  # (B, S)
        value = forward(v, observations, memory)
        # Where V is too high the loss has 1 - expectile of its slope, where it is too low the expectile.
        slopes = functional.leaky_relu(value.values - lower, expectile / (1 - expectile))
        slopes *= 2 * (1 - expectile) / count
        parameter_gradients(v, value, observations, slopes, v_into)
        values = []
        for layers, into in zip(twins, twins_into, strict=True):
            passed = forward(layers, batch.pairs, memory)
            parameter_gradients(layers, passed, batch.pairs, (passed.values - target).mul_(2 / count), into)
            values.append(passed.values)
        return Outcome(value.values, lower, torch.stack(values), target, expectile)
