"""The head of actions that are several discrete choices at once (`MultiDiscrete`), each with a softmax of its own.

Shape legend: B batch, P predicted steps, M draws, A choices, O outputs of a step, one for each option of all
choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rayrl_dt import losses
from rayrl_dt.models.head import Head

__all__ = ["MultiCategoricalHead"]


class MultiCategoricalHead(Head):
    """Outputs are the logits of the options, choice after choice; the choices are independent, given the context."""

    continuous = False
    stochastic = True
    drawn_in_evaluations = True
    dtype = np.int64

    def __init__(self, space: gym.Space[Any], low: tuple[float, ...], high: tuple[float, ...]) -> None:
        super().__init__(space, low, high)
        assert isinstance(space, gym.spaces.MultiDiscrete)
        self._options: list[int] = np.asarray(space.nvec).tolist()
        self._first = torch.tensor(np.asarray(space.start, np.int64))
        self.shape = (len(self._options),)
        self.size = self.outputs = sum(self._options)

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether the space is a row of discrete ones."""
        return isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1

    def embedding(self, width: int) -> nn.Module:
        """Return a table for each choice, whose rows are added; see `Head`."""
        return _Tables(self._options, width)

    def imitation_loss(
        self, outputs: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy of the action: the sum over its choices."""
        parts = zip(self._parts(outputs), wanted.unbind(dim=-1), strict=True)
        return torch.stack([losses.cross_entropy(logits, index, mask) for logits, index in parts]).sum()

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely options."""
        return self._each(outputs, lambda logits: logits.argmax(dim=-1))

    def sample(self, outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw from each softmax; see `Head`."""

        def draw(logits: Tensor) -> Tensor:
            probabilities = logits.float().softmax(dim=-1).cpu()  # (B, options)
            return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

        return torch.stack([self._each(outputs, draw) for _ in range(count)])  # (M, B, A)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the mean over choices of the total variation distance."""
        parts = zip(self._parts(one.double()), self._parts(other.double()), strict=True)
        apart = [(a.softmax(dim=-1) - b.softmax(dim=-1)).abs().sum(dim=-1) / 2 for a, b in parts]
        return torch.stack(apart).mean(dim=0)

    def to_model_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Count from 0; see `Head`."""
        return actions - self._first.to(actions.device)

    def inside(self, actions: Tensor) -> Tensor:
        """Clamp to the indices: the unread last slot holds 0 while acting, which need not be an option."""
        last = torch.tensor(self._options, device=actions.device) - 1
        return actions.clamp(min=torch.zeros_like(last), max=last)

    def in_env_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Count from the first options; see `Head`."""
        return actions + self._first.to(actions.device)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Split `(..., O)` into the logits of each choice."""
        return torch.split(outputs, self._options, dim=-1)

    def _each(self, outputs: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([choose(logits) for logits in self._parts(outputs)], dim=-1)  # (..., A)


class _Tables(nn.Embedding):
    """Rows for the options of all choices, `(..., A)` indices to `(..., d)`."""

    before: Tensor

    def __init__(self, options: list[int], width: int) -> None:
        super().__init__(sum(options), width)
        starts = torch.tensor([0, *itertools.accumulate(options[:-1])])
        self.register_buffer("before", starts, persistent=False)

    def forward(self, indices: Tensor) -> Tensor:
        """Add the rows up."""
        return super().forward(indices + self.before).sum(dim=-2)
