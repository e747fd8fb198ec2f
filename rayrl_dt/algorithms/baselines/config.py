"""The builder that the memoryless baselines share: an MLP policy and critics, trained together on transitions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import NotProvided

from rayrl_dt.algorithms.checks import positive, whole
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError

__all__ = ["MemorylessConfig"]


class MemorylessConfig(SequenceConfig):
    """Configures a policy of the current state that learns from single transitions, with critics beside it.

    A transition is a window of one step with its successor, so data, evaluation, checkpoints and bundles are those of
    the sequence policies. The network is that of behavior cloning, without dropout.
    """

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
        self.lr = 3e-4
        self.warmup_steps = 0
        self.weight_decay = 0.0
        self.grad_clip = None
        self.gamma = 0.99
        self.polyak = 0.005
        self.critic_lr = 3e-4
        self.critic_width = 256
        self.reward_scale = 1.0

    def training(
        self,
        *,
        polyak: float = NotProvided,
        critic_lr: float = NotProvided,
        critic_width: int = NotProvided,
        reward_scale: float = NotProvided,
        **kwargs: Any,
    ) -> MemorylessConfig:
        """Set the optimization of policy and critics.

        Args:
            polyak: share of the new weights in the slow copies at each of their steps.
            critic_lr: learning rate of the critics, constant.
            critic_width: units of their two hidden layers.
            reward_scale: critics learn from rewards divided by it; returns stay raw.
            **kwargs: as for all algorithms (`gradient_steps`, `lr`, ...), and RLlib's own (`gamma`, ...).
        """
        super().training(**kwargs)
        self._set(polyak=polyak, critic_lr=critic_lr, critic_width=critic_width, reward_scale=reward_scale)
        return self

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

    def validate(self) -> None:
        """Check the values of the critics too.

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
        whole(self, "training", 1, "critic_width")
        for name, high in (("gamma", 1.0), ("polyak", 1.0), ("critic_lr", None), ("reward_scale", None)):
            positive(self, name, high=high)
        super().validate()

    @property
    def _name(self) -> str:
        return type(self).__name__.removesuffix("Config")
