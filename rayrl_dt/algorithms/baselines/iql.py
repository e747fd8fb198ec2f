"""Implicit Q-learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.config import MemorylessConfig
from rayrl_dt.algorithms.critic_module import CRITIC_HIDDEN, CriticRLModule
from rayrl_dt.algorithms.learner import GRAD_NORM, SequenceLearner
from rayrl_dt.algorithms.multi_loss_learner import CRITIC, CRITIC_LOSS, POLICY, MultiLossLearner
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.offline import Q_MEAN
from rayrl_dt.settings import Settings, real, setting
from rayrl_dt.types import Window

__all__ = ["IQL", "IQLConfig", "IQLLearner"]

VALUE_LOSS = "value_loss"
_VALUE = "value"


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

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of the module with V, Q and Q's slow copy."""
        return RLModuleSpec(module_class=CriticRLModule)

    def module_settings(self) -> dict[str, Any]:
        """Return what the RLModule is made of."""
        return {**super().module_settings(), CRITIC_HIDDEN: self.critic_width}


class IQL(SequenceAlgorithm):
    """The algorithm of `IQLConfig`."""

    @classmethod
    def get_default_config(cls) -> IQLConfig:
        """Return an `IQLConfig`."""
        return IQLConfig(algo_class=cls)


class IQLLearner(MultiLossLearner):
    """One step of V, of Q, of its slow copy and of the policy; all read what was there before the step."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register AdamW for the policy, Adam for V and for Q."""
        module = self.module[module_id].unwrapped()
        fused = self.device.type == "cpu"
        for name, network, lr, decay in (
            (POLICY, module.model, config.lr, config.weight_decay),
            (_VALUE, module.critic.value, config.critic_lr, 0.0),
            (CRITIC, module.critic.q, config.critic_lr, 0.0),
        ):
            adam = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=decay, fused=fused)
            self._register(module_id, name, adam, lr=lr)

    def _take_step(self, window: Window[Tensor]) -> None:
        config, module = self.config, self.sequence_module
        assert isinstance(module, CriticRLModule)
        model, critic = module.model, module.critic
        assert window.next is not None and window.rewards is not None and window.terminated is not None
        inputs, following = model.inputs(window), model.inputs(window.next)
        with torch.no_grad():
            ahead = critic.value(following.observations)[..., 0]
            rewards = window.rewards / config.reward_scale
            target = losses.iql_target(rewards, window.terminated, ahead, gamma=config.gamma)
            lower = critic.target(inputs.observations, inputs.actions).amin(dim=0)
        value = critic.value(inputs.observations)[..., 0]
        advantages = lower - value.detach()
        value_loss = losses.expectile_loss(value, lower, expectile=config.expectile)
        self._apply(_VALUE, value_loss, "the loss of V", clip=None)
        values = critic.q(inputs.observations, inputs.actions)
        critic_loss = losses.iql_critic_loss(values.flatten(1), target.flatten())
        self._apply(CRITIC, critic_loss, "the critic's loss", clip=None)
        with torch.no_grad():
            torch._foreach_lerp_([*critic.target.parameters()], [*critic.q.parameters()], config.polyak)
        weights = losses.advantage_weights(advantages, temperature=1 / config.beta, cap=config.weight_cap)
        with precision.autocast(self.device, module.precision):
            outputs = model(window)
        loss = imitation_loss(model, outputs, window, weights)
        norm = self._apply(POLICY, loss, "the policy's loss", clip=config.grad_clip)
        self._last_loss = loss.detach()
        logged = {VALUE_LOSS: value_loss, CRITIC_LOSS: critic_loss, Q_MEAN: values.mean()}
        for key, logged_value in logged.items():
            self._add(key, logged_value.detach())
        self._add(GRAD_NORM, norm)
