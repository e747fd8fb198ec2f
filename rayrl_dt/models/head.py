"""What a head is: the meaning of a policy's outputs, how well they fit logged actions, how actions are taken from them.

Actions have two units: those of the environment, and *model units*, where continuous actions lie in [-1, 1] and
discrete ones are indices from 0. `SequenceModel` says what -1 and 1 stand for: middle and half of the action's range.

Shape legend: B batch, K steps, P predicted steps, M draws, A action dimensions, n discrete actions, O outputs of a
step, d width. Discrete actions have no axis A.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ContinuousHead", "Head"]

Array = np.ndarray[Any, Any]


class Head(ABC):
    """The meaning of a policy's outputs, for one action space.

    Args:
        space: of the actions.
        low: `(A,)` action that -1 stands for; empty where actions are discrete.
        high: `(A,)` action that 1 stands for; likewise.

    Attributes:
        continuous: whether actions in model units are vectors in [-1, 1], which critics take and noise can move.
        stochastic: whether the outputs are a law that actions can be drawn from.
        drawn_in_evaluations: whether evaluations draw by default; otherwise they take the mode.
        low: as given, in the environment's type.
        high: likewise.
        size: A, or n.
        outputs: O, numbers that the linear layer gives for a step.
        shape: of one action in the environment's units: `(A,)` or `()`; `(A,)` for A discrete choices, too.
        dtype: of logged actions.
        target_entropy: the entropy that finetuning online holds the policy at; None where it holds none.
    """

    continuous: ClassVar[bool]
    stochastic: ClassVar[bool]
    drawn_in_evaluations: ClassVar[bool] = False
    size: int
    outputs: int
    shape: tuple[int, ...]
    dtype: type[np.generic]
    target_entropy: float | None = None

    def __init__(self, space: gym.Space[Any], low: tuple[float, ...], high: tuple[float, ...]) -> None:
        self.low, self.high = (np.array(bound, space.dtype) for bound in (low, high))

    @classmethod
    @abstractmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether actions of a space can be taken."""

    def layer(self, width: int, initialize: Callable[[nn.Linear], None]) -> nn.Linear:
        """Return the layer `(..., d) -> (..., O)`.

        Args:
            width: d.
            initialize: initializes it as the backbone's authors do, which a head may overrule.
        """
        layer = nn.Linear(width, self.outputs)
        initialize(layer)
        return layer

    def read_out(self, raw: Tensor) -> Tensor:
        """Return the outputs `(..., O)` for what the layer gave, `(..., O)`."""
        return raw

    def guided(self, asked: Tensor, unasked: Tensor, weight: float) -> Tensor:
        """Return `weight` times the way from what the layer gave for no return to what it gave for one, `(..., O)`.

        Args:
            asked: `(..., O)`, of the layer, not read out yet.
            unasked: the same for nothing asked for.
            weight: 0 for the latter, 1 for the former; more goes beyond.
        """
        return unasked + weight * (asked - unasked)

    @abstractmethod
    def embedding(self, width: int) -> nn.Module:
        """Return a module from logged actions in model units, `(B, K, A)` or `(B, K)`, to tokens `(B, K, d)`."""

    @abstractmethod
    def imitation_loss(
        self, outputs: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return how badly outputs fit logged actions, a mean over real steps, `()`.

        Args:
            outputs: `(B, P, O)`.
            wanted: `(B, P, A)` or `(B, P)` in model units; padding may hold anything.
            mask: `(B, P)` bool.
            weights: `(B, P)`, how much each step counts, for continuous actions; None for 1 each.
        """

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """Return the policy's own action in model units, `(..., A)` or `(...)`, for outputs `(..., O)`.

        Continuous ones are differentiable.
        """

    def sample(self, outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw M = `count` actions in model units for each row of outputs `(B, O)`: `(M, B, A)` or `(M, B)`.

        Without a law there is nothing to draw, and all are the mode.
        """
        mode = self.mode(outputs)
        return mode.expand(count, *mode.shape)

    def choose(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the action to take, in model units, for outputs `(B, O)`: drawn, or without a generator the mode."""
        return self.mode(outputs) if generator is None else self.sample(outputs, 1, generator)[0]

    def sample_with_density(self, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of the outputs `(..., O)`, with its log-density; both are differentiable.

        Only where there is a target entropy.

        Returns:
            `(..., A)` in model units, and `(...)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no density")

    def entropy(self, outputs: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean entropy `()` at real steps, estimated from a draw each; only where there is a target for it.

        Args:
            outputs: `(B, P, O)`.
            mask: `(B, P)` bool.
            generator: on the CPU, whatever the device, so that draws are the same everywhere.
        """
        raise NotImplementedError(f"{type(self).__name__} has no entropy")

    @abstractmethod
    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return how far the policies of outputs `(B, O)` are apart, `(B,)` from 0 to 1."""

    @abstractmethod
    def to_model_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Convert the environment's actions `(..., A)` or `(...)`; `middle` and `half` are `(A,)`.

        What padding holds, for instance 0, need not become an index.
        """

    def inside(self, actions: Tensor) -> Tensor:
        """Return actions in model units with those that are none, as padding and unread slots hold, made some."""
        return actions

    @abstractmethod
    def in_env_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Convert actions in model units, `(B, A)` or `(B,)`, to the environment's; rounding may step over a bound."""

    def to_array(self, actions: Tensor) -> Array:
        """Return actions in the environment's units, `(B, A)` or `(B,)`, as the environment takes them."""
        found: Array = actions.cpu().numpy()
        return found

    def single(self, action: Any) -> Any:
        """Return one action as a single environment takes it; it stays the caller's own."""
        return np.array(action)


class ContinuousHead(Head):
    """What heads of continuous actions share: vectors in [-1, 1] that are scaled to the action's bounds.

    Attributes:
        limits: `(A,)` lowest and highest action; `low` and `high`, but for what the space leaves no choice.
    """

    continuous = True
    dtype = np.float32

    def __init__(self, space: gym.Space[Any], low: tuple[float, ...], high: tuple[float, ...]) -> None:
        super().__init__(space, low, high)
        self.size = self.outputs = len(low)
        self.shape = (self.size,)
        assert isinstance(space, gym.spaces.Box)
        # Where the space leaves no choice there is a range nevertheless, for actions to be divided by.
        one = space.low == space.high
        self.limits = np.where(one, space.low, self.low), np.where(one, space.high, self.high)

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether the space is a box of one axis."""
        return isinstance(space, gym.spaces.Box) and len(space.shape) == 1

    def embedding(self, width: int) -> nn.Module:
        """Return a linear layer; see `Head`."""
        return nn.Linear(self.size, width)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the mean over dimensions of |difference| / 2 of the modes."""
        modes = (self.mode(outputs).double() for outputs in (one, other))
        return torch.sub(*modes).abs().mean(dim=-1) / 2

    def to_model_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Scale to [-1, 1], clipped; see `Head`."""
        return ((actions - middle) / half).clamp(-1.0, 1.0).to(middle.dtype)

    def in_env_units(self, actions: Tensor, middle: Tensor, half: Tensor) -> Tensor:
        """Scale to the bounds; see `Head`."""
        return actions.float() * half + middle

    def to_array(self, actions: Tensor) -> Array:
        """Return what is within the bounds; see `Head`."""
        values = actions.cpu().numpy()
        found: Array = np.clip(values.astype(self.low.dtype), *self.limits)
        return found
