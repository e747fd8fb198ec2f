"""Implicit Q-learning's critic, learned from logged transitions (Kostrikov et al. 2022; Action Gradient, section 4).

V learns an expectile of Q over the data's actions, Q learns r + gamma V(s'). No policy enters, so one critic serves
every policy that shares its units.

Where the paper of Action Gradient is silent, this is what CORL does, by our own code: twin Q of which the lower one
of the slow copies teaches V, expectile 0.7, gamma 0.99, Adam at 3e-4, a slow copy that moves by 0.005 after each step,
batches of 256. A step reads V(s') before V moves. Rewards are raw; CORL rescales them on a few data sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.passes import Layers, forward, layers_of, memory_for, parameter_gradients
from rayrl_dt.critics.transitions import Transitions, transitions_of
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import TrainingDiverged, UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.precision import dtype_of, resolve
from rayrl_dt.seeding import numpy_generator, seeded_weights

__all__ = ["CriticTraining", "IQLTrainer", "Outcome", "fit_critic", "new_critic"]

_BLOCK = 100
"""Steps whose batches come from one generator; results are checked and reported once in each."""
_GATHERED = 10
"""Steps whose batches are copied together; divides `_BLOCK`."""
_EXPLODED = 10.0
"""Mean values this many times beyond what rewards can add up to have exploded."""


@dataclass(frozen=True)
class CriticTraining:
    """How a critic is trained.

    Attributes:
        steps: gradient steps.
        batch_size: transitions of a step.
        lr: Adam's, constant.
        gamma: discount.
        expectile: of V among the data's actions; 0.5 is their mean, towards 1 the best of them.
        polyak: how far the slow copy of Q moves at each step.
        hidden: width of the networks.
        precision: of the products: "auto" (bf16 where the hardware multiplies it natively), "bf16" or "fp32".

    Raises:
        UserError: a value is out of range.
    """

    steps: int = 20_000
    batch_size: int = 256
    lr: float = 3e-4
    gamma: float = 0.99
    expectile: float = 0.7
    polyak: float = 0.005
    hidden: int = 256
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"the critic's {name} is {value!r}; it must be a whole number of at least 1")
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("gamma", 0.0, 1.0),
            ("expectile", 0.0, 1.0),
            ("polyak", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not (low < value < high or (name in ("gamma", "polyak") and value == high)):
                raise UserError(f"the critic's {name} is {value!r}; it must lie between {low:g} and {high:g}")
        resolve(self.precision, "cpu")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def new_critic(spec: PolicySpec, *, hidden: int, seed: int) -> IQLCritic:
    """Return an untrained critic whose weights are a function of the seed alone."""
    with seeded_weights(seed, "init-critic"):
        return IQLCritic(spec, hidden=hidden)


def fit_critic(
    model: SequenceModel,
    store: TrajectoryStore,
    training: CriticTraining,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> IQLCritic:
    """Train a critic on a store, in the units of a policy; on the CPU, whatever the policy's device.

    Args:
        model: says how observations are normalized and actions scaled; it is not changed.
        store: the logged data.
        training: how.
        seed: of weights and batches.
        progress: called with (steps done, steps in total).

    Raises:
        UserError: the policy has discrete actions or image observations, or the data are of another task.
        TrainingDiverged: a loss became NaN, or the values left what rewards can add up to.
    """
    critic = new_critic(model.spec, hidden=training.hidden, seed=seed)
    trainer = IQLTrainer(critic, transitions_of(store, model), training, seed=seed)
    while trainer.steps_done < training.steps:
        trainer.run(min(_BLOCK, training.steps - trainer.steps_done))
        if progress is not None:
            progress(trainer.steps_done, training.steps)
    return critic


class IQLTrainer:
    """Takes gradient steps on a critic.

    All weights lie in one vector, and those of the slow copy in another, so that Adam and the slow copy take one
    operation each.

    Args:
        critic: trained in place.
        transitions: the logged data.
        training: how.
        seed: of the batches; batch n is a function of (seed, n).

    Attributes:
        steps_done: gradient steps taken.
    """

    def __init__(
        self, critic: IQLCritic, transitions: Transitions, training: CriticTraining, *, seed: int
    ) -> None:
        self.training = training
        self.steps_done = 0
        value, twins = list(critic.value.parameters()), list(critic.q.parameters())
        self._weights = _one_vector([*value, *twins])
        self._slow = _one_vector(list(critic.target.parameters()))
        self._followed = self._weights[sum(parameter.numel() for parameter in value) :]
        self._value = layers_of(critic.value)
        self._twins = layers_of(critic.q.q1), layers_of(critic.q.q2)
        self._targets = layers_of(critic.target.q1), layers_of(critic.target.q2)
        gradients = torch.zeros_like(self._weights)
        pieces = _pieces(gradients, [*value, *twins])
        self._gradients = [Layers(*pieces[start : start + 6]) for start in (0, 6, 12)]
        self._adam = _Adam(self._weights, gradients, training.lr)
        self._dtype = dtype_of(resolve(training.precision, "cpu"))
        self._memory = memory_for(self._value, training.batch_size, self._dtype)
        self._batches = _batches(transitions, training.batch_size, seed)
        self._largest_reward = float(transitions.rewards.abs().max())

    @torch.inference_mode()
    def run(self, steps: int) -> None:
        """Take some steps and check the last one.

        Raises:
            TrainingDiverged: a loss is NaN or infinite, or the values left what rewards can add up to.
        """
        for batch in itertools.islice(self._batches, steps):
            outcome = self.step(batch)
        self.steps_done += steps
        self._check(outcome)

    @torch.inference_mode()
    def step(self, batch: Transitions) -> Outcome:
        """Take one gradient step on a batch and return what it saw."""
        count, expectile, gamma = len(batch.rewards), self.training.expectile, self.training.gamma
        if len(self._memory.first) != count:
            self._memory = memory_for(self._value, count, self._dtype)
        memory, gradients = self._memory, self._gradients
        following = forward(self._value, batch.following, memory).values
        target = losses.iql_target(batch.rewards, batch.terminated, following, gamma=gamma)
        lower = torch.minimum(*(forward(slow, batch.pairs, memory).values for slow in self._targets))
        observations = batch.pairs[:, : batch.following.shape[1]]
        value = forward(self._value, observations, memory)
        # Where V is too high the loss has 1 - expectile of its slope, where it is too low the expectile.
        slopes = functional.leaky_relu(value.values - lower, expectile / (1 - expectile))
        slopes *= 2 * (1 - expectile) / count
        parameter_gradients(self._value, value, observations, slopes, gradients[0])
        values = []
        for layers, into in zip(self._twins, gradients[1:], strict=True):
            passed = forward(layers, batch.pairs, memory)
            parameter_gradients(layers, passed, batch.pairs, (passed.values - target).mul_(2 / count), into)
            values.append(passed.values)
        self._adam.step()
        self._slow.lerp_(self._followed, self.training.polyak)
        return Outcome(value.values, lower, (values[0], values[1]), target)

    def _check(self, outcome: Outcome) -> None:
        values = torch.stack(outcome.q)
        value_loss = losses.expectile_loss(
            outcome.value, outcome.lower, expectile=self.training.expectile
        ).item()
        critic_loss, mean = losses.iql_critic_loss(values, outcome.target).item(), values.mean().item()
        if not (math.isfinite(value_loss) and math.isfinite(critic_loss)):
            raise TrainingDiverged(
                f"the critic's losses became {value_loss:.3g} (V) and {critic_loss:.3g} (Q) by gradient step "
                f"{self.steps_done}; check the rewards of the data, or lower the learning rate"
            )
        bound = _EXPLODED * self._largest_reward / max(1 - self.training.gamma, 1e-6)
        if not abs(mean) <= max(bound, _EXPLODED):
            raise TrainingDiverged(
                f"the critic's values exploded: their mean is {mean:.3g} at gradient step {self.steps_done}, and "
                f"rewards up to {self._largest_reward:.3g} cannot add up to a tenth of that; lower the learning rate"
            )


class Outcome(NamedTuple):
    """What a gradient step saw, from before the step."""

    value: Tensor  # (B,) V(s)
    lower: Tensor  # (B,) lower one of the slow Q(s, a), which V follows
    q: tuple[Tensor, Tensor]  # (B,) each
    target: Tensor  # (B,) which both Q follow


class _Adam:
    """`torch.optim.Adam` on one vector, without its bookkeeping, which takes as long as the step itself.

    Args:
        weights: changed in place.
        gradients: read at each step.
        lr: learning rate.
    """

    def __init__(self, weights: Tensor, gradients: Tensor, lr: float) -> None:
        self._weights, self._gradients, self._lr = weights, gradients, lr
        self._first, self._second = torch.zeros_like(weights), torch.zeros_like(weights)
        self._steps = torch.zeros(())

    def step(self) -> None:
        """Move the weights."""
        self._steps += 1
        torch._fused_adam_(
            [self._weights],
            [self._gradients],
            [self._first],
            [self._second],
            [],
            [self._steps],
            lr=self._lr,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )


def _batches(transitions: Transitions, size: int, seed: int) -> Iterator[Transitions]:
    """Batches without end, drawn with replacement."""
    count = len(transitions.rewards)
    for block in itertools.count():
        rng = numpy_generator(seed, "critic-batches", block)
        rows = torch.from_numpy(rng.integers(count, size=_BLOCK * size))
        for together in torch.split(rows, _GATHERED * size):
            parts = (torch.split(values, size) for values in transitions.batch(together))
            yield from (Transitions(*batch) for batch in zip(*parts, strict=True))


def _one_vector(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Move parameters into one vector that they become views of."""
    vector = torch.cat([parameter.detach().flatten() for parameter in parameters])
    for parameter, piece in zip(parameters, _pieces(vector, parameters), strict=True):
        parameter.data = piece
    return vector


def _pieces(vector: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """View of a vector with the shapes of parameters."""
    pieces = torch.split(vector, [parameter.numel() for parameter in parameters])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]
