"""TD3+BC."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.config import MemorylessConfig
from rayrl_dt.algorithms.learner import SequenceLearner
from rayrl_dt.algorithms.policy_optimizer import adamw
from rayrl_dt.algorithms.rl_gradient_learner import RLGradientLearner
from rayrl_dt.critics.companions import Companions
from rayrl_dt.errors import UserError
from rayrl_dt.objectives.td3 import TD3, TD3Settings
from rayrl_dt.settings import Settings, count, flag, real, setting, whole_value

__all__ = ["TD3BC", "TD3BCConfig", "TD3BCLearner"]


@dataclass(frozen=True)
class TD3BCSettings(Settings):
    """What TD3+BC adds.

    Attributes:
        alpha: weight of the normalized values beside the squared error; 0 is behavior cloning.
        actor_interval: gradient steps of the critics for one of the policy and the slow copies.
        critic_layer_norm: layer norm without parameters in the critics' hidden layers, against values that explode
            (not in the paper).
    """

    section: ClassVar[str] = "training"

    alpha: float = setting(2.5, real(least=0))
    actor_interval: int = setting(2, count(1))
    critic_layer_norm: bool = setting(False, flag(), fixed=whole_value)


class TD3BCConfig(MemorylessConfig):
    """TD3+BC (Fujimoto and Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning").

    The policy minimizes (pi(s) - a)^2 - lambda Q1(s, pi(s)) with lambda = alpha / mean|Q1(s, pi(s))|, detached; twin
    critics learn from the lower one of their slow copies at the smoothed action of the policy's slow copy (noise 0.2,
    at most 0.5). Policy and copies move at every second step.

    The gradient is that of TD3+ODT, with a policy that has no memory (`rayrl_dt.objectives.td3`).

    Differs from the paper: observations are normalized with 1e-6, not 1e-3, beside the standard deviation; a few ten
    thousand steps instead of a million.
    """

    parts = (*MemorylessConfig.parts, TD3BCSettings)

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or TD3BC)

    @property
    def gradient(self) -> TD3:
        """TD3's, its values normalized, its critics by Adam without decay."""
        chosen = {
            each.name: getattr(self, each.name) for each in fields(TD3Settings) if hasattr(self, each.name)
        }
        return TD3(TD3Settings(**chosen, normalize_q=True, critic_weight_decay=0.0))

    @property
    def companions(self) -> Companions:
        """Twin critics and slow copies."""
        return self.gradient.companions

    def get_default_learner_class(self) -> type[SequenceLearner]:
        """Return `TD3BCLearner`."""
        return TD3BCLearner

    def validate(self) -> None:
        """Check the head, too.

        Raises:
            UserError: the head is not deterministic, or a value is out of range.
        """
        if self.sequence_model.head == "gaussian":
            raise UserError(
                "TD3BC needs a deterministic policy, model_config.head is 'gaussian'; set head: deterministic, or "
                "algorithm: IQL"
            )
        super().validate()


class TD3BCLearner(RLGradientLearner):
    """The learner of `TD3BCConfig`."""

    def _policy_optimizer(self, arguments: dict[str, Any]) -> torch.optim.Optimizer:
        return adamw(self.device, fused_on_cpu=False, **arguments)


class TD3BC(SequenceAlgorithm):
    """The algorithm of `TD3BCConfig`."""

    @classmethod
    def get_default_config(cls) -> TD3BCConfig:
        """Return a `TD3BCConfig`."""
        return TD3BCConfig(algo_class=cls)
