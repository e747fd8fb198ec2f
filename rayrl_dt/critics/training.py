"""Implicit Q-learning's critic, learned from logged transitions (Kostrikov et al. 2022; Action Gradient, section 4).

V learns an expectile of Q over the data's actions, Q learns r + gamma V(s'). No policy enters, so one critic serves
every policy that shares its units.

Where the paper of Action Gradient is silent, this is what CORL does, by our own code: twin Q of which the lower one
of the slow copies teaches V, expectile 0.7, gamma 0.99, Adam at 3e-4, a slow copy that moves by 0.005 after each step,
batches of 256. A step reads V(s') before V moves. Rewards are divided by a scale that follows from the data; CORL
rescales them on a few data sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rayrl_dt.critics.guard import check_values
from rayrl_dt.critics.iql import IQLStep, Outcome
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.transitions import Transitions, transitions_of
from rayrl_dt.data import scaling
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import TrainingDiverged
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.precision import PRECISIONS, dtype_of, resolve
from rayrl_dt.seeding import numpy_generator, seeded_weights
from rayrl_dt.settings import Settings, automatic, choice, count, real, setting

__all__ = ["CriticTraining", "IQLTrainer", "fit_critic", "new_critic"]

_BLOCK = 100
"""Steps whose batches come from one generator; results are checked and reported once in each."""
_GATHERED = 10
"""Steps whose batches are copied together; divides `_BLOCK`."""


@dataclass(frozen=True)
class CriticTraining(Settings):
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
        reward_scale: rewards are divided by it, and with them all values; "auto" for that of the policy's data
            (`rayrl_dt.data.scaling.reward_scale`), so that the rewards' unit changes nothing.

    Raises:
        UserError: a value is out of range.
    """

    section: ClassVar[str] = "critic"

    steps: int = setting(20_000, count(1))
    batch_size: int = setting(256, count(1))
    lr: float = setting(3e-4, real(above=0))
    gamma: float = setting(0.99, real(above=0, most=1))
    expectile: float = setting(0.7, real(above=0, below=1))
    polyak: float = setting(0.005, real(above=0, most=1))
    hidden: int = setting(256, count(1))
    precision: str = setting("auto", choice(*PRECISIONS))
    reward_scale: float | str = setting("auto", automatic(real(above=0)))

    def scaled_for(self, spec: PolicySpec, store: TrajectoryStore) -> CriticTraining:
        """Return the same with a number as the scale of rewards: a policy's where it knows one, or that of data."""
        known = scaling.reward_scale(store) if spec.reward_scale is None else spec.reward_scale
        if isinstance(self.reward_scale, str):
            return replace(self, reward_scale=known)
        scaling.warn_if_far(f"{self.section}.reward_scale", self.reward_scale, known)
        return self

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
    training = training.scaled_for(model.spec, store)
    critic = new_critic(model.spec, hidden=training.hidden, seed=seed)
    transitions = transitions_of(store, model)
    transitions = transitions._replace(rewards=transitions.rewards / float(training.reward_scale))
    trainer = IQLTrainer(critic, transitions, training, seed=seed)
    while trainer.steps_done < training.steps:
        trainer.run(min(_BLOCK, training.steps - trainer.steps_done))
        if progress is not None:
            progress(trainer.steps_done, training.steps)
    return critic


class IQLTrainer:
    """Takes gradient steps on a critic.

    Args:
        critic: trained in place.
        transitions: the logged data, their rewards scaled.
        training: how, its `reward_scale` aside.
        seed: of the batches; batch n is a function of (seed, n).

    Attributes:
        steps_done: gradient steps taken.
    """

    def __init__(
        self, critic: IQLCritic, transitions: Transitions, training: CriticTraining, *, seed: int
    ) -> None:
        self.training = training
        self.steps_done = 0
        dtype = dtype_of(resolve(training.precision, "cpu"))
        self._iql = IQLStep(critic, expectile=training.expectile, gamma=training.gamma, dtype=dtype)
        self._adam = _Adam(self._iql.vectors, training.lr)
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
        outcome = self._iql.take(batch)
        self._adam.step()
        self._iql.slow.move(self.training.polyak)
        return outcome

    def _check(self, outcome: Outcome) -> None:
        value_loss, critic_loss = outcome.value_loss.item(), outcome.critic_loss.item()
        mean = outcome.q.mean().item()
        if not (math.isfinite(value_loss) and math.isfinite(critic_loss)):
            raise TrainingDiverged(
                f"the critic's losses became {value_loss:.3g} (V) and {critic_loss:.3g} (Q) by gradient step "
                f"{self.steps_done}; check the rewards of the data, or lower the learning rate (--lr)"
            )
        check_values(
            mean,
            largest_reward=self._largest_reward,
            gamma=self.training.gamma,
            step=self.steps_done,
            remedy="lower the learning rate (--lr)",
        )


class _Adam:
    """`torch.optim.Adam` on vectors, without its bookkeeping, which takes up to half of a step.

    Args:
        vectors: of weights, changed in place, each with its gradients, read at each step.
        lr: learning rate.
    """

    def __init__(self, vectors: Sequence[tuple[Tensor, Tensor]], lr: float) -> None:
        self._weights, self._gradients = ([*parts] for parts in zip(*vectors, strict=True))
        self._first, self._second = ([*map(torch.zeros_like, self._weights)] for _ in range(2))
        self._steps, self._lr = [torch.zeros(()) for _ in vectors], lr

    def step(self) -> None:
        """Move the weights."""
        torch._foreach_add_(self._steps, 1)
        torch._fused_adam_(
            self._weights,
            self._gradients,
            self._first,
            self._second,
            [],
            self._steps,
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
