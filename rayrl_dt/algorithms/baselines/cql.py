"""Conservative Q-learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.config import MemorylessConfig
from rayrl_dt.algorithms.cql_module import CQLRLModule
from rayrl_dt.algorithms.critic_module import CRITIC_HIDDEN
from rayrl_dt.algorithms.learner import GRAD_NORM, SequenceLearner
from rayrl_dt.algorithms.multi_loss_learner import CRITIC, CRITIC_LOSS, POLICY, TEMPERATURE, MultiLossLearner
from rayrl_dt.algorithms.online.module import INITIAL_TEMPERATURE
from rayrl_dt.errors import UserError
from rayrl_dt.objectives.offline import Q_MEAN
from rayrl_dt.seeding import torch_generator
from rayrl_dt.settings import Settings, count, real, setting
from rayrl_dt.types import Window

__all__ = ["CONSERVATIVE_GAP", "CQL", "CQLConfig", "CQLLearner"]

CONSERVATIVE_GAP = "conservative_gap"


@dataclass(frozen=True)
class CQLSettings(Settings):
    """What CQL adds.

    Attributes:
        alpha: weight of the conservative gap beside the critics' squared error; 0 is soft actor-critic.
        num_actions: sampled actions of each of the three kinds, for every transition.
        temperature_lr: learning rate of the entropy's temperature.
        initial_temperature: its first value, in units of Q for a nat.
    """

    section: ClassVar[str] = "training"

    alpha: float = setting(10.0, real(least=0))
    num_actions: int = setting(4, count(1))
    temperature_lr: float = setting(3e-5, real(above=0))
    initial_temperature: float = setting(1.0, real(above=0))


class CQLConfig(MemorylessConfig):
    """CQL (Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning"), in its form CQL(H).

    Soft actor-critic on logged data, whose twin critics also learn to value the data's actions above all others: alpha
    weighs log of the integral of exp Q over the actions, less Q of the data's. The integral is an importance-weighted
    mean over `num_actions` actions each of the policy at s, of the policy at s', and of a uniform draw. The policy
    climbs the lower critic, and holds its entropy at -A with a temperature that it learns.

    Own code: RLlib 2.60's CQL values the actions drawn at s' at s', not at s; draws the uniform actions in the
    environment's units and all others in [-1, 1]; goes on cloning the data past `bc_iters`, which it counts within one
    call of `update`; and does not save its temperature.

    Differs from the paper: the Bellman error is not halved (as in its code, so alpha is that of the code), targets
    carry no entropy (nor do those of its code), and alpha has no Lagrange multiplier. The temperature's loss is linear
    in it, as in soft actor-critic's paper, not in its logarithm. Critics step before the policy, which climbs the new
    ones. PyTorch's initialization but for the policy's head, and log-std within [-5, 2].

    Differs from CORL for the sake of a CPU: critics of two hidden layers instead of three, 4 actions of each kind
    instead of 10 (each costs both critics a pass: the time of a step is nearly proportional to it), 20,000 steps
    instead of a million; observations are normalized with 1e-6, not 1e-3, beside the standard deviation.
    """

    parts = (*MemorylessConfig.parts, CQLSettings)

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or CQL)
        self.model_defaults = {**self.model_defaults, "num_layers": 3, "head": "gaussian"}
        self.gradient_steps = 20_000
        self.gradient_steps_per_iteration = 2_000
        self.lr = 3e-5

    def get_default_learner_class(self) -> type[SequenceLearner]:
        """Return `CQLLearner`."""
        return CQLLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of the module with twin critics, their slow copy and the temperature."""
        return RLModuleSpec(module_class=CQLRLModule)

    def module_settings(self) -> dict[str, Any]:
        """Return what the RLModule is made of."""
        return {
            **super().module_settings(),
            CRITIC_HIDDEN: self.critic_width,
            INITIAL_TEMPERATURE: self.initial_temperature,
        }

    def validate(self) -> None:
        """Check the head, too.

        Raises:
            UserError: the head is not Gaussian, or a value is out of range.
        """
        head = self.sequence_model.head
        if head != "gaussian":
            raise UserError(
                f"CQL needs a stochastic policy, model_config.head is {head!r}; set head: gaussian, or "
                "algorithm: TD3BC"
            )
        super().validate()


class CQL(SequenceAlgorithm):
    """The algorithm of `CQLConfig`."""

    @classmethod
    def get_default_config(cls) -> CQLConfig:
        """Return a `CQLConfig`."""
        return CQLConfig(algo_class=cls)


class CQLLearner(MultiLossLearner):
    """One step of the critics, of the policy and its temperature, and of the critics' slow copy."""

    @property
    def cql_module(self) -> CQLRLModule:
        """The module with its critics."""
        module = self.sequence_module
        assert isinstance(module, CQLRLModule)
        return module

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register AdamW for the policy, Adam for the critics and for the temperature."""
        module = self.module[module_id].unwrapped()
        fused = self.device.type == "cpu"
        for name, parameters, lr, decay in (
            (POLICY, [*module.model.parameters()], config.lr, config.weight_decay),
            (CRITIC, [*module.critic.parameters()], config.critic_lr, 0.0),
            (TEMPERATURE, [module.log_temperature], config.temperature_lr, 0.0),
        ):
            adam = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=fused)
            self._register(module_id, name, adam, lr=lr)

    def _take_step(self, window: Window[Tensor]) -> None:
        noise = torch_generator(self.config.seed or 0, "cql-noise", self._rank, self.gradient_step)
        self._critic_step(window, noise)
        self._policy_step(window, noise)
        self.cql_module.move_target(self.config.polyak)

    def _critic_step(self, window: Window[Tensor], noise: torch.Generator) -> None:
        """One step of the twin critics: towards r + gamma min Q'(s', a'), and down where the data have no actions."""
        config, module = self.config, self.cql_module
        model = module.model
        assert window.next is not None and window.rewards is not None and window.terminated is not None
        inputs, following = model.inputs(window), model.inputs(window.next)
        count = config.num_actions
        with torch.no_grad():
            here, there = self._outputs(window), self._outputs(window.next)
            ahead, _ = self._draw(there, 1, noise)
            rewards = window.rewards / config.reward_scale
            lower = module.target_critic(following.observations, ahead)
            target = losses.td3_target(rewards, window.terminated, lower, gamma=config.gamma)
            drawn = [self._draw(outputs, count, noise) for outputs in (here, there)]
            drawn.append(self._draw_uniform(drawn[0][0], noise))
            actions = torch.cat([inputs.actions, *(found for found, _ in drawn)], dim=1)
            log_density = torch.cat([density for _, density in drawn], dim=1)
        # The window's only step stands for all of them: (B, 1 + M, ...), the logged action first.
        observations = inputs.observations.expand(-1, actions.shape[1], -1)
        values = module.critic(observations, actions)
        logged, sampled = values[..., :1], values[..., 1:]
        gap = losses.conservative_gap(sampled, log_density, logged[..., 0])
        loss = losses.td3_critic_loss(logged, target, window.mask) + config.alpha * gap
        self._apply(CRITIC, loss, "the critic's loss", clip=None)
        self._add(CRITIC_LOSS, loss.detach())
        self._add(CONSERVATIVE_GAP, gap.detach())
        self._add(Q_MEAN, logged.detach().mean())

    def _policy_step(self, window: Window[Tensor], noise: torch.Generator) -> None:
        """One step of the policy up the lower critic and the entropy, and one of the entropy's temperature."""
        config, module = self.config, self.cql_module
        temperature = module.log_temperature.detach().exp()
        actions, log_density = self._draw(self._outputs(window), 1, noise)
        entropy = -log_density.mean()
        values = module.critic(module.model.inputs(window).observations, actions).amin(dim=0)
        loss = losses.td3_actor_loss(values, window.mask, normalize=False) - temperature * entropy
        norm = self._apply(POLICY, loss, "the policy's loss", clip=config.grad_clip)
        self._temperature_step(module.log_temperature, entropy)
        self._last_loss = loss.detach()
        self._add(GRAD_NORM, norm)

    def _outputs(self, window: Window[Tensor]) -> Tensor:
        with precision.autocast(self.device, self.cql_module.precision):
            outputs: Tensor = self.cql_module.model(window)
        return outputs

    def _draw(self, outputs: Tensor, count: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions `(B, count, A)` of the policy with their log-density, for its outputs `(B, 1, 2A)`."""
        return self.cql_module.model.spec.head.sample_with_density(outputs.expand(-1, count, -1), noise)

    def _draw_uniform(self, like: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform actions in [-1, 1] with their log-density, in the shapes of drawn ones `(B, M, A)`."""
        actions = 2.0 * torch.rand(like.shape, generator=noise).to(like.device) - 1.0
        log_density = torch.full(like.shape[:-1], -like.shape[-1] * math.log(2.0), device=like.device)
        return actions, log_density
