"""The learners of Vitamin's bandit: many small policies and critics, trained at once on rewards and actions.

`rayrl_dt.experiments.vitamin_bandit` says what they are for.

Shape legend: M methods, S seeds, N = M * S learners (those of the first method first), B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rayrl_dt.seeding import torch_generator

__all__ = ["Learners", "Method", "Stack", "of_seeds"]

WIDTH = 128
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Method:
    """A way to finetune.

    Attributes:
        name: as the report calls it.
        bc_weight: of the squared distance to the replayed action.
        q_weight: of the critic's value.
        reward_fed: whether the critic is also told the reward that the replayed action earned.
    """

    name: str
    bc_weight: float
    q_weight: float
    reward_fed: bool = False


def of_seeds(seeds: int, draw: Callable[..., Tensor], seed: int, stream: str, *counters: int) -> Tensor:
    """Return what each of S seeds draws from a generator of its own, stacked; methods share it."""
    generators = [torch_generator(seed, stream, member, *counters) for member in range(seeds)]
    return torch.stack([draw(generator=generator) for generator in generators])


class Stack:
    """N multilayer perceptrons of two hidden layers, each with weights of its own, evaluated together.

    Attributes:
        parameters: weights `(N, in, out)` and biases `(N, 1, out)`, in turns.

    Args:
        inputs: `(N,)` how many of the two inputs each network reads; the others must be zero.
        seed: of the initial weights.
        stream: what the networks are for; names the generator.
        seeds: S; networks of one seed start with equal weights, but for the scale that their number of inputs gives.
    """

    def __init__(self, inputs: Tensor, *, seed: int, stream: str, seeds: int) -> None:
        self.parameters: list[Tensor] = []
        repeats = len(inputs) // seeds
        for layer, (fan_in, fan_out) in enumerate(((2, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))):
            fans = inputs if layer == 0 else torch.full_like(inputs, fan_in)
            bound = fans.float().rsqrt()[:, None, None]
            for rows in (fan_in, 1):
                drawn = of_seeds(seeds, partial(torch.rand, rows, fan_out), seed, stream, layer, rows)
                self.parameters.append(((2 * drawn - 1).repeat(repeats, 1, 1) * bound).requires_grad_())

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map `(N, B, 2)` to `(N, B)`."""
        first, first_bias, second, second_bias, last, last_bias = self.parameters
        hidden = torch.baddbmm(first_bias, inputs, first).relu()
        hidden = torch.baddbmm(second_bias, hidden, second).relu()
        return torch.baddbmm(last_bias, hidden, last)[..., 0]


class Learners:
    """Every method with every seed. A method that gives its critic no weight trains one all the same.

    Attributes:
        policies: N networks from a reward to an action.
        critics: N networks from an action (and a reward) to its value.

    Args:
        methods: in the order of the learners.
        seeds: S.
        seed: of everything.
    """

    def __init__(self, methods: tuple[Method, ...], seeds: int, seed: int) -> None:
        settings = [(method.bc_weight, method.q_weight, method.reward_fed) for method in methods]
        per_learner = torch.tensor(settings).repeat_interleave(seeds, dim=0)
        self.bc_weights, self.q_weights, self.fed = per_learner[..., None].unbind(1)
        self.policies = Stack(torch.ones(len(per_learner)), seed=seed, stream="bandit-policy", seeds=seeds)
        self.critics = Stack(1 + self.fed[:, 0], seed=seed, stream="bandit-critic", seeds=seeds)
        self.restart_optimizers()

    def restart_optimizers(self) -> None:
        """Forget Adam's moments, as at the start of finetuning."""
        self._policy_optimizer, self._critic_optimizer = (
            torch.optim.Adam(stack.parameters, lr=LEARNING_RATE, fused=True)
            for stack in (self.policies, self.critics)
        )

    def act(self, rewards: Tensor) -> Tensor:
        """Return the policies' actions `(N, B)` when asked for rewards `(N, B)`."""
        return torch.tanh(self.policies(torch.stack([rewards, torch.zeros_like(rewards)], dim=-1)))

    def value(self, actions: Tensor, rewards: Tensor) -> Tensor:
        """Return the critics' values of actions; what the replayed actions earned reaches the reward-fed ones alone."""
        return self.critics(torch.stack([actions, rewards * self.fed], dim=-1))

    def critic_loss(self, actions: Tensor, rewards: Tensor) -> Tensor:
        """Return the sum over critics of their mean squared errors on replayed actions, both `(N, B)`."""
        return (self.value(actions, rewards) - rewards).square().mean(dim=-1).sum()

    def policy_loss(self, actions: Tensor, rewards: Tensor, *, online: bool) -> Tensor:
        """Return the sum over policies of w_BC (pi(R) - a)^2 - w_Q Q(pi(R)), means over `(N, B)` replayed actions.

        Before `online`, all fit the replayed actions and nothing else.
        """
        chosen = self.act(rewards)
        distance = (chosen - actions).square()
        if not online:
            return distance.mean(dim=-1).sum()
        gain = self.q_weights * self.value(chosen, rewards)
        return (self.bc_weights * distance).mean(dim=-1).sum() - gain.mean(dim=-1).sum()

    def update(self, actions: Tensor, rewards: Tensor, *, online: bool) -> None:
        """Take one step of the critics, then one of the policies, on replayed actions `(N, B)`."""
        _step(self._critic_optimizer, self.critics, self.critic_loss(actions, rewards))
        _step(self._policy_optimizer, self.policies, self.policy_loss(actions, rewards, online=online))


def _step(optimizer: torch.optim.Optimizer, stack: Stack, loss: Tensor) -> None:
    """Move one stack of networks down a loss; whatever else the loss went through gets no gradient."""
    gradients = torch.autograd.grad(loss, stack.parameters)
    for parameter, gradient in zip(stack.parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
