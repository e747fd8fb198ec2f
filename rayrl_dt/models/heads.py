"""The table of heads. Adding one takes a class, here or in a file of its own, and a row.

Shape legend: B batch, P predicted steps, M draws, A action dimensions, n discrete actions, O outputs of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rayrl_dt import losses
from rayrl_dt.devices import normal_like, on_device
from rayrl_dt.models.head import ContinuousHead, Head
from rayrl_dt.models.multi_categorical import MultiCategoricalHead
from rayrl_dt.types import ACTION_LIMIT

__all__ = ["HEADS", "CategoricalHead"]


class DeterministicHead(ContinuousHead):
    """Outputs are the action, after a tanh."""

    stochastic = False

    def read_out(self, raw: Tensor) -> Tensor:
        """Squash; see `Head`. In float32 at least: beyond 3.47 the tanh of bf16 is 1, and its gradient 0 for good."""
        return torch.tanh(raw.to(torch.promote_types(raw.dtype, torch.float32)))

    def imitation_loss(
        self, outputs: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error; see `Head`."""
        return losses.masked_mse(outputs, wanted, mask, weights)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs


class GaussianHead(ContinuousHead):
    """Outputs are mean and spread of a normal variable whose tanh is the action (Online DT, Zheng et al. 2022)."""

    stochastic = True

    def __init__(self, space: gym.Space[Any], low: tuple[float, ...], high: tuple[float, ...]) -> None:
        super().__init__(space, low, high)
        self.outputs = 2 * self.size
        self.target_entropy = -float(self.size)

    def layer(self, width: int, initialize: Callable[[nn.Linear], None]) -> nn.Linear:
        """Return a layer whose parts are orthogonal maps of their own with bias 0, as its authors have it."""
        del initialize
        layer = nn.Linear(width, self.outputs)
        for part in torch.chunk(layer.weight.detach(), 2):
            nn.init.orthogonal_(part)
        nn.init.zeros_(layer.bias)
        return layer

    def guided(self, asked: Tensor, unasked: Tensor, weight: float) -> Tensor:
        """Move the mean alone; the spread is that of what is asked for. See `Head`."""
        mean = super().guided(asked[..., : self.size], unasked[..., : self.size], weight)
        return torch.cat([mean, asked[..., self.size :]], dim=-1)

    def law(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean before the tanh and the log standard deviation in [-5, 2], `(..., A)` in float32 each."""
        mean, raw = torch.chunk(outputs.float(), 2, dim=-1)  # (..., 2 A) -> 2 x (..., A)
        return mean, -5.0 + 3.5 * (torch.tanh(raw) + 1.0)

    def imitation_loss(
        self, outputs: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean negative log-likelihood; see `Head`."""
        return losses.squashed_gaussian_nll(*self.law(outputs), wanted, mask, weights)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return tanh(mean)."""
        return _squashed(self.law(outputs)[0])

    def sample(self, outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw from the squashed normal law; see `Head`."""
        mean, log_std = self.law(outputs)  # (B, A) each
        noise = torch.randn((count, *mean.shape), generator=generator, device=generator.device)
        return _squashed(mean + log_std.exp() * on_device(noise, mean.device))  # (M, B, A)

    def sample_with_density(self, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw from the squashed normal law; see `Head`."""
        mean, log_std = self.law(outputs)
        return losses.squashed_gaussian_sample(mean, log_std, normal_like(mean, generator))

    def entropy(self, outputs: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the entropy of the squashed law; see `Head`."""
        mean, log_std = self.law(outputs)
        return losses.squashed_gaussian_entropy(mean, log_std, mask, normal_like(mean, generator))


class CategoricalHead(Head):
    """Outputs are the logits of the discrete actions."""

    continuous = False
    stochastic = True
    drawn_in_evaluations = True
    shape = ()
    dtype = np.int64

    def __init__(self, space: gym.Space[Any], low: tuple[float, ...], high: tuple[float, ...]) -> None:
        super().__init__(space, low, high)
        assert isinstance(space, gym.spaces.Discrete)
        self.size = self.outputs = int(space.n)
        self._start = int(space.start)

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether the space is discrete."""
        return isinstance(space, gym.spaces.Discrete)

    def embedding(self, width: int) -> nn.Module:
        """Return a table; see `Head`."""
        return nn.Embedding(self.size, width)

    def law(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of the actions, `(..., n)` in float32."""
        return outputs.float().softmax(dim=-1)

    def imitation_loss(
        self, outputs: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy; see `Head`."""
        return losses.cross_entropy(outputs, wanted, mask)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely action."""
        return outputs.argmax(dim=-1)

    def sample(self, outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw from the softmax; see `Head`."""
        probabilities = self.law(outputs).cpu()  # (B, n)
        drawn = [torch.multinomial(probabilities, 1, generator=generator)[:, 0] for _ in range(count)]
        return torch.stack(drawn)  # (M, B)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the total variation distance of the laws."""
        return (one.double().softmax(dim=-1) - other.double().softmax(dim=-1)).abs().sum(dim=-1) / 2

    def to_model_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Count from 0; see `Head`."""
        return actions - self._start

    def inside(self, actions: Tensor) -> Tensor:
        """Clamp to the indices: the unread last slot holds 0 while acting, which need not be an action."""
        return actions.clamp(0, self.size - 1)

    def in_env_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Count from the first action; see `Head`."""
        return actions + self._start

    def single(self, action: Any) -> Any:
        """Return an int."""
        return int(action)


HEADS: dict[str, type[Head]] = {
    "deterministic": DeterministicHead,
    "gaussian": GaussianHead,
    "categorical": CategoricalHead,
    "multi-categorical": MultiCategoricalHead,
}
"""By name. Where `model_config.head` is "auto", the first that fits the actions is taken."""


def _squashed(before: Tensor) -> Tensor:
    return torch.tanh(before).clamp(-ACTION_LIMIT, ACTION_LIMIT)
