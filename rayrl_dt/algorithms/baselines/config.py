"""The builder that the memoryless baselines share: an MLP policy and critics, trained together on transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym

from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.settings import Settings, automatic, count, real, setting, whole_value

__all__ = ["MemorylessConfig", "MemorylessSettings"]


@dataclass(frozen=True)
class MemorylessSettings(Settings):
    """The optimization of critics.

    Attributes:
        gamma: their discount.
        polyak: share of the new weights in the slow copies at each of their steps.
        critic_lr: learning rate of the critics, constant.
        critic_width: units of their two hidden layers.
        reward_scale: critics learn from rewards divided by it; returns stay raw. "auto" follows from the data, so that
            the rewards' unit changes nothing (`rayrl_dt.data.scaling.reward_scale`).
    """

    section: ClassVar[str] = "training"

    gamma: float = setting(0.99, real(above=0, most=1))
    polyak: float = setting(0.005, real(above=0, most=1))
    critic_lr: float = setting(3e-4, real(above=0))
    critic_width: int = setting(256, count(1), fixed=whole_value)
    reward_scale: float | str = setting("auto", automatic(real(above=0)), fixed=whole_value)


class MemorylessConfig(SequenceConfig):
    """Configures a policy of the current state that learns from single transitions, with critics beside it.

    A transition is a window of one step with its successor, so data, evaluation, checkpoints and bundles are those of
    the sequence policies. The network is that of behavior cloning, without dropout.
    """

    parts = (*SequenceConfig.parts, MemorylessSettings)

    reward_scale: float | str

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.model_defaults = {
            "backbone": "mlp",
            "context_length": 1,
            "embed_dim": 256,
            "num_layers": 2,
            "dropout": 0.0,
        }
        self.gradient_steps = 50_000
        self.gradient_steps_per_iteration = 5_000
        self.train_batch_size_per_learner = 256
        self.warmup_steps = 0
        self.weight_decay = 0.0
        self.grad_clip = None

    @property
    def samples_successors(self) -> bool:
        """True: critics learn from what follows."""
        return True

    def resolve(self, store: TrajectoryStore) -> None:
        """Fill in what the data decides.

        Raises:
            UserError: the actions of the data are discrete.
        """
        # First of all: no head fits then, and another head is no remedy.
        if isinstance(store.info.action_space, gym.spaces.Discrete):
            raise UserError(
                f"{self._name} needs continuous actions, and those of {store.info.source} are "
                f"{store.info.action_space}; choose other data, or algorithm: BC"
            )
        super().resolve(store)
        self.reward_scale = self.critic_scale("training", self.reward_scale)

    def validate(self) -> None:
        """Check that the policy has no memory, too.

        Raises:
            UserError: a value is out of range, or the policy has a memory.
        """
        model = self.sequence_model
        if (model.backbone, model.context_length) != ("mlp", 1):
            raise UserError(
                f"{self._name} is memoryless: model_config.backbone is {model.backbone!r} with context_length "
                f"{model.context_length}, it must be 'mlp' with 1; for a sequence policy with a critic set "
                "training.objective: pg or awac of another algorithm"
            )
        if self.objective != "imitation":
            raise UserError(
                f"training.objective is {self.objective!r}, and {self._name} trains a critic of its own; remove it"
            )
        super().validate()

    @property
    def _name(self) -> str:
        return type(self).__name__.removesuffix("Config")
