"""What an RL gradient is: one object that names the networks it needs, takes its steps, and adds to a policy's loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rayrl_dt.critics.companions import Companions
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.devices import normal_like
from rayrl_dt.models.head import Head
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.trunk import TrunkInputs
from rayrl_dt.precision import autocast
from rayrl_dt.settings import Settings, count, setting
from rayrl_dt.types import Window

__all__ = ["CRITIC", "CRITIC_LOSS", "Batch", "Bench", "GradientSettings", "Networks", "RLGradient", "Trained"]

CRITIC = "critic"
CRITIC_LOSS = "critic_loss"

Kind = TypeVar("Kind", bound="RLGradient")


class Networks(Protocol):
    """A policy and what `RLGradient.companions` names; the rest is not there."""

    model: SequenceModel
    critic: TwinCritic
    target_model: SequenceModel
    target_critic: TwinCritic
    log_temperature: Tensor
    precision: str

    @property
    def judge(self) -> TwinCritic | None:
        """The twin Q that may be asked about actions."""

    def move_targets(self, polyak: float, *, only: str | None = None) -> None:
        """Move the slow copies by `polyak` of the way; `only` names one, such as "critic"."""


class Batch:
    """Windows, with what several losses read of them.

    Args:
        window: raw windows, on the learner's device.
        model: the policy.
        noise: generator of the step; the same numbers on every device.
        progress: share of the run's gradient steps that are over.
        precision: "fp32" or "bf16", of the encoder's products.

    Attributes:
        window, noise, progress: as given; a policy's step leaves windows that ask for nothing in `window`.
        drawn: the windows as they were drawn.
        shift: `(B,)`, how far the returns of `asked` lie from those of the windows, raw; None without them.
        asked: outputs `(M, B, K, O)` of the policy for `RLGradient.asked_returns`; None without them.
        logged: what the policy's loss leaves for the log, detached.
    """

    def __init__(
        self,
        window: Window[Tensor],
        model: SequenceModel,
        noise: torch.Generator,
        progress: float = 0.0,
        precision: str = "fp32",
    ) -> None:
        self.window = self.drawn = window
        self.noise, self.progress = noise, progress
        self._model, self._precision = model, precision
        self.shift: Tensor | None = None
        self.asked: Tensor | None = None
        self.logged: dict[str, Tensor] = {}

    @cached_property
    def inputs(self) -> TrunkInputs:
        """The windows in model units."""
        return self._model.inputs(self.window)

    @cached_property
    def features(self) -> Tensor:
        """What critics see of the observations, `(B, K, F)`: vectors as they are, images through the policy's encoder.

        Without gradients: the encoder learns from the policy's loss.
        """
        with torch.no_grad(), autocast(self.window.mask.device, self._precision):
            return self._model.features(self.inputs.observations)

    def parts(self, count: int) -> list[Batch]:
        """Return `count` equal batches without a window in common; the noise goes on through them."""
        if count == 1:
            return [self]
        size = self.window.batch_size // count
        windows = (self.window.rows(begin * size, (begin + 1) * size) for begin in range(count))
        return [Batch(window, self._model, self.noise, self.progress, self._precision) for window in windows]

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normal numbers from the step's noise; see `rayrl_dt.devices.normal_like`."""
        return normal_like(like, self.noise)


class Bench(Protocol):
    """What a learner lends to an RL gradient."""

    gradient_step: int

    @property
    def online(self) -> bool:
        """Whether finetuning has begun; always where nothing is pretrained."""

    @property
    def networks(self) -> Networks:
        """The policy and its companions."""

    def descend(self, optimizer: str, loss: Tensor, what: str) -> Tensor:
        """Take a step of an optimizer on the mean over the learners; return the gradient's norm.

        Raises:
            TrainingDiverged: `what` (for the message) or its gradient is NaN or infinite.
        """

    def log(self, key: str, value: Tensor) -> None:
        """Log a value, detached, as a mean over gradient steps."""

    def check_values(self, mean: Tensor, paid: Tensor, *, gamma: float, reward_scale: float) -> None:
        """Check that a critic's values can be returns of the rewards of the data and of all batches so far.

        Args:
            mean: `()` of the critic's values.
            paid: `(B, K)`, sizes of what the critic counts as rewards of the batch, in its own units.
            gamma: the critic's discount.
            reward_scale: the critic learns from rewards divided by it.

        Raises:
            TrainingDiverged: they have exploded, in all learners alike.
        """


class Trained(NamedTuple):
    """Weights that an Adam of their own trains."""

    optimizer: str
    parameters: Iterable[nn.Parameter]
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class GradientSettings(Settings):
    """What every RL gradient is told.

    Attributes:
        actor_interval: gradient steps of the critics for one of the actor and the targets.
    """

    section: ClassVar[str] = "online"

    actor_interval: int = setting(1, count(1))


class RLGradient:
    """An RL gradient, and the one that is none: the policy fits its data and nothing else.

    A gradient step is `critic_step`; at every `actor_interval`-th one the policy descends what `policy_loss` returns,
    and then comes `policy_moved`. Whatever is random comes from the batch, so a step is a function of the weights, the
    batch and the step's number.

    Another one is a subclass, with a row in `rayrl_dt.objectives.rl_gradients.RL_GRADIENTS`.

    Args:
        settings: checked.

    Attributes:
        settings: as given.
        reads: the settings' class; its fields are flat attributes of configs.
        successors: whether batches carry rewards and the windows shifted by one step.
        logs: metrics beside those of the policy.
        reads_progress: whether it reads how much of the run is over.
    """

    reads: ClassVar[type[GradientSettings]] = GradientSettings
    successors: ClassVar[bool] = False
    reads_progress: ClassVar[bool] = False
    logs: ClassVar[tuple[str, ...]] = ()

    settings: GradientSettings

    def __init__(self, settings: GradientSettings) -> None:
        self.settings = settings

    @classmethod
    def of(cls: type[Kind], config: Any) -> Kind:
        """Build one from the attributes of a config.

        Raises:
            UserError: a value is not allowed.
        """
        return cls(cls.reads.of(config))

    @property
    def companions(self) -> Companions:
        """The networks it needs beside the policy."""
        return Companions()

    @property
    def reads_episode_returns(self) -> bool:
        """Whether batches carry the returns of their windows' episodes."""
        return False

    @classmethod
    def fits(cls, head: Head) -> bool:
        """Return whether it can train policies with a head."""
        return True

    def check_model(self, model: ModelConfig) -> None:
        """Refuse policies that it cannot train.

        Raises:
            UserError: with another choice.
        """

    def check_policy(self, spec: PolicySpec) -> None:
        """Refuse data that it cannot use.

        Raises:
            UserError: with another choice.
        """

    def trained(self, networks: Networks) -> Iterable[Trained]:
        """Return what it trains beside the policy."""
        return ()

    def critic_step(self, bench: Bench, batch: Batch) -> None:
        """Take the steps of what it trains beside the policy."""

    def asked_returns(self, networks: Networks, batch: Batch, *, online: bool) -> Tensor | None:
        """Return what else the policy is asked for, `(M, B, K, 1)` raw; None for nothing but the data's returns.

        The outputs are `Batch.asked`, when the policy's loss is asked for. The arguments are those of `policy_loss`.
        """
        return None

    def entropy_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the outputs `(B, K, O)` whose entropy finetuning holds: `outputs`, for the returns of the data."""
        return outputs

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches of a size that it cannot use.

        Raises:
            UserError: with another choice.
        """

    def imitation_weights(
        self, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor | None:
        """Return how much each step counts where the policy fits its data, `(B, K)`; None for 1 each.

        The arguments are those of `policy_loss`.
        """
        return None

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Return what the policy descends.

        Args:
            fit: `()`, how badly the policy fits its data, weighted.
            outputs: `(B, K, ...)` of the policy.
            networks: the policy and its companions; the policy alone gets a gradient.
            batch: the windows.
            online: whether finetuning has begun.
        """
        return fit

    def policy_moved(self, networks: Networks) -> None:
        """Follow the policy's step, as slow copies do."""
