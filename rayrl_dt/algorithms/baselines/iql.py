"""Implicit Q-learning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.config import MemorylessConfig
from rayrl_dt.algorithms.learner import SequenceLearner
from rayrl_dt.algorithms.multi_loss_learner import MultiLossLearner
from rayrl_dt.critics.companions import Companions
from rayrl_dt.critics.iql import IQLStep
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.transitions import Transitions
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.gradient import CRITIC, CRITIC_LOSS, Batch, Trained
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.objective import Q_MEAN
from rayrl_dt.settings import Settings, real, setting

__all__ = ["IQL", "IQLConfig", "IQLLearner"]

VALUE_LOSS = "value_loss"


@dataclass(frozen=True)
class IQLSettings(Settings):
    """What IQL adds.

    Attributes:
        expectile: of V among the data's actions; 0.5 is their mean, towards 1 the best of them.
        beta: inverse temperature of the weights, above 0; towards 0 the policy is behavior cloning. It multiplies
            values in units of `reward_scale`.
        weight_cap: largest weight of an action.
    """

    section: ClassVar[str] = "training"

    expectile: float = setting(0.7, real(above=0, below=1))
    beta: float = setting(3.0, real(above=0))
    weight_cap: float = setting(100.0, real(above=0))


class IQLConfig(MemorylessConfig):
    """IQL (Kostrikov et al. 2022, "Offline Reinforcement Learning with Implicit Q-Learning").

    V learns an expectile of Q over the data's actions, Q learns r + gamma V(s'), and the policy imitates the data's
    actions, each weighted by exp(beta (Q(s, a) - V(s))), at most 100 (advantage-weighted regression). Q in the weight
    and in V's target is the lower one of the slow copies.

    Own code: RLlib's IQL has faults in its targets and its expectile.

    Differs from the paper: the policy is deterministic by default (as in CORL on Hopper), its error a mean over the
    action dimensions; head "gaussian" is squashed, with a standard deviation that depends on the state. A few ten
    thousand steps instead of a million; the policy's cosine ends with them.
    """

    parts = (*MemorylessConfig.parts, IQLSettings)

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or IQL)
        self.lr_decay = "cosine"

    def get_default_learner_class(self) -> type[SequenceLearner]:
        """Return `IQLLearner`."""
        return IQLLearner

    @property
    def companions(self) -> Companions:
        """V, Q and Q's slow copy."""
        return Companions(critic="iql", shape={"hidden": self.critic_width})


class IQL(SequenceAlgorithm):
    """The algorithm of `IQLConfig`."""

    @classmethod
    def get_default_config(cls) -> IQLConfig:
        """Return an `IQLConfig`."""
        return IQLConfig(algo_class=cls)


class IQLLearner(MultiLossLearner):
    """One step of V, of Q, of its slow copy and of the policy; all read what was there before the step."""

    def build(self) -> None:
        """Build module and optimizers."""
        super().build()
        critic, config = self.networks.critic, self.config
        assert isinstance(critic, IQLCritic)
        self._iql = IQLStep(critic, expectile=config.expectile, gamma=config.gamma)

    def _trained(self) -> Iterable[Trained]:
        critic = self.networks.critic
        assert isinstance(critic, IQLCritic)
        yield Trained(
            CRITIC, [*critic.value.parameters(), *critic.q.parameters()], self.config.critic_lr, 0.0
        )

    def _take_step(self, batch: Batch) -> None:
        config, model, window = self.config, self.networks.model, batch.window
        seen = self._iql.take(_transitions(batch, model, config.reward_scale))
        value_loss, critic_loss = seen.value_loss, seen.critic_loss
        self.follow(CRITIC, self._iql.gradients, value_loss + critic_loss, "the critic's loss")
        self._iql.slow.move(config.polyak)
        weights = losses.advantage_weights(
            seen.lower - seen.value, temperature=1 / config.beta, cap=config.weight_cap
        )
        with precision.autocast(self.device, self.networks.precision):
            outputs = model(window)  # (B, 1, A or 2A)
        self.descend_policy(imitation_loss(model, outputs, window, weights[:, None]))
        self.log(VALUE_LOSS, value_loss)
        self.log(CRITIC_LOSS, critic_loss)
        self.log(Q_MEAN, seen.q.mean())


def _transitions(batch: Batch, model: SequenceModel, reward_scale: float) -> Transitions:
    """Windows of one step as transitions."""
    window, inputs = batch.window, batch.inputs
    assert window.next is not None and window.rewards is not None and window.terminated is not None
    return Transitions(
        pairs=torch.cat([inputs.observations, inputs.actions], dim=-1)[:, 0],  # (B, 1, S + A) -> (B, S + A)
        rewards=window.rewards[:, 0] / reward_scale,
        following=model.inputs(window.next).observations[:, 0],  # (B, 1, S) -> (B, S)
        terminated=window.terminated[:, 0],
    )
