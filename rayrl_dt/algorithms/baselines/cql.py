"""Conservative Q-learning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayrl_dt import losses, precision
from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.config import MemorylessConfig
from rayrl_dt.algorithms.learner import SequenceLearner
from rayrl_dt.algorithms.multi_loss_learner import TEMPERATURE, MultiLossLearner
from rayrl_dt.critics.companions import Companions
from rayrl_dt.critics.return_floor import calibrated
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.devices import on_device
from rayrl_dt.errors import UserError
from rayrl_dt.objectives.gradient import CRITIC, CRITIC_LOSS, Batch, Trained
from rayrl_dt.objectives.objective import Q_MEAN
from rayrl_dt.settings import Settings, count, flag, real, setting
from rayrl_dt.types import Window

__all__ = ["CONSERVATIVE_GAP", "CQL", "CQLConfig", "CQLLearner"]

CONSERVATIVE_GAP = "conservative_gap"


@dataclass(frozen=True)
class CQLSettings(Settings):
    """What CQL adds.

    Attributes:
        alpha: weight of the conservative gap beside the critics' squared error, both in units of `reward_scale`; 0 is
            soft actor-critic.
        calibrated: value the policy's actions no lower, in the gap, than what the data went on to achieve from the same
            state (Nakamoto et al. 2023, "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning"):
            for critics that finetuning is to begin with. An episode that ran out of time counts as if nothing came
            after it.
        num_actions: sampled actions of each of the three kinds, for every transition.
        temperature_lr: learning rate of the entropy's temperature.
        initial_temperature: its first value, in units of Q (those of `reward_scale`) for a nat.
    """

    section: ClassVar[str] = "training"

    alpha: float = setting(10.0, real(least=0))
    calibrated: bool = setting(False, flag())
    num_actions: int = setting(4, count(1))
    temperature_lr: float = setting(3e-5, real(above=0))
    initial_temperature: float = setting(1.0, real(above=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibrated and self.alpha == 0:
            raise UserError(
                "training.calibrated floors values in the gap that training.alpha weighs, and alpha is 0; set alpha, "
                "such as 10, or calibrated: false"
            )


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

    @property
    def companions(self) -> Companions:
        """Twin critics, their slow copy and the temperature."""
        shape = {"hidden": self.critic_width}
        return Companions(
            critic="twin", shape=shape, slow=("critic",), initial_temperature=self.initial_temperature
        )

    @property
    def samples_discount(self) -> float | None:
        """The critics' discount, where they are calibrated."""
        return self.gamma if self.calibrated else None

    def resolve(self, store: TrajectoryStore) -> None:
        """Fill in what the data decides.

        Raises:
            UserError: the actions of the data are discrete, or there are no returns to calibrate with.
        """
        if self.calibrated and not store.rewards.any():
            raise UserError(
                f"training.calibrated floors values at the returns of the data, and {store.info.source} has none: all "
                "rewards are 0; set training.calibrated: false, or choose data with rewards"
            )
        super().resolve(store)

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
    """One step of the critics, of the policy and its temperature, and of the critics' slow copy.

    Shape legend: B batch, S observation dimensions, A action dimensions, M sampled actions of all kinds.
    """

    noise: ClassVar[str] = "cql-noise"

    def _trained(self) -> Iterable[Trained]:
        networks, config = self.networks, self.config
        yield Trained(CRITIC, networks.critic.parameters(), config.critic_lr, 0.0)
        yield Trained(TEMPERATURE, [networks.log_temperature], config.temperature_lr, 0.0)

    def _take_step(self, batch: Batch) -> None:
        self._critic_step(batch)
        self._policy_step(batch)
        self.networks.move_targets(self.config.polyak)

    def _critic_step(self, batch: Batch) -> None:
        """One step of the twin critics: towards r + gamma min Q'(s', a'), and down where the data have no actions."""
        config, networks, window, inputs = self.config, self.networks, batch.window, batch.inputs
        assert window.next is not None and window.rewards is not None and window.terminated is not None
        following, count = networks.model.inputs(window.next), config.num_actions
        with torch.no_grad():
            here, there = self._outputs(window), self._outputs(window.next)  # (B, 1, 2A)
            ahead, _ = self._draw(there, 1, batch)  # (B, 1, A)
            rewards = window.rewards / config.reward_scale  # (B, 1)
            lower = networks.target_critic(following.observations, ahead)  # (2, B, 1)
            target = losses.td3_target(rewards, window.terminated, lower, gamma=config.gamma)  # (B, 1)
            drawn = [self._draw(outputs, count, batch) for outputs in (here, there)]
            drawn.append(self._draw_uniform(drawn[0][0], batch.noise))
            actions = torch.cat([inputs.actions, *(found for found, _ in drawn)], dim=1)  # (B, 1 + M, A)
            log_density = torch.cat([density for _, density in drawn], dim=1)  # (B, M)
        # The window's only step stands for all of them, the logged action first: (B, 1, S) -> (B, 1 + M, S).
        observations = inputs.observations.expand(-1, actions.shape[1], -1)
        values = networks.critic(observations, actions)  # (2, B, 1 + M)
        logged, sampled = values[..., :1], values[..., 1:]
        if config.calibrated:
            assert window.discounted_returns is not None
            returns = window.discounted_returns / config.reward_scale  # (B, 1)
            sampled = calibrated(sampled, returns, of_policy=2 * count)
        gap = losses.conservative_gap(sampled, log_density, logged[..., 0])
        loss = losses.td3_critic_loss(logged, target, window.mask) + config.alpha * gap
        self.descend(CRITIC, loss, "the critic's loss")
        self.log(CRITIC_LOSS, loss.detach())
        self.log(CONSERVATIVE_GAP, gap.detach())
        self.log(Q_MEAN, logged.detach().mean())

    def _policy_step(self, batch: Batch) -> None:
        """One step of the policy up the lower critic and the entropy, and one of the entropy's temperature."""
        networks, window = self.networks, batch.window
        temperature = networks.log_temperature.detach().exp()
        actions, log_density = self._draw(self._outputs(window), 1, batch)  # (B, 1, A) and (B, 1)
        entropy = -log_density.mean()
        values = networks.critic(batch.inputs.observations, actions).amin(dim=0)  # (2, B, 1) -> (B, 1)
        loss = losses.td3_actor_loss(values, window.mask, normalize=False) - temperature * entropy
        self.descend_policy(loss)
        self._temperature_step(entropy)

    def _outputs(self, window: Window[Tensor]) -> Tensor:
        with precision.autocast(self.device, self.networks.precision):
            outputs: Tensor = self.networks.model(window)
        return outputs

    def _draw(self, outputs: Tensor, count: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Actions `(B, count, A)` of the policy with their log-density, for its outputs `(B, 1, 2A)`."""
        head = self.networks.model.spec.head
        return head.sample_with_density(outputs.expand(-1, count, -1), batch.noise)

    def _draw_uniform(self, like: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform actions in [-1, 1] with their log-density, in the shapes of drawn ones `(B, M, A)`."""
        actions = 2.0 * on_device(torch.rand(like.shape, generator=noise), like.device) - 1.0
        log_density = torch.full(like.shape[:-1], -like.shape[-1] * math.log(2.0), device=like.device)
        return actions, log_density
