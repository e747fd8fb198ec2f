"""The recent steps of N environments, as one left-padded window per environment.

All slots share one write cursor, so appending a step is one vectorized write and the window is a view, with
no copying. It holds what `rayrl_dt.data.windows` would cut from the finished episode: the same values, the
same padding.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np

from rayrl_dt.data.windows import stacks
from rayrl_dt.models.encoders import encoder_of
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.types import Window

__all__ = ["ContextBuffer"]

Array = np.ndarray[Any, Any]

_FIELDS = ("_returns", "_observations", "_actions", "_timesteps", "_mask")


class ContextBuffer:
    """Context windows of `slots` environments.

    Args:
        slots: N.
        context_length: K.
        observation_shape: of one step.
        observation_dtype: float32, or uint8 for images.
        action_shape: `(A,)`, or `()` for discrete actions.
        action_dtype: float32 or int64.
        frame_stack: S, images of which the observation of a step is made (`rayrl_dt.data.windows.gather`); None for no
            stacks.
        slack: steps between two moves of the window to the front of the memory.

    Attributes:
        appended: steps so far, of each slot.
    """

    def __init__(
        self,
        slots: int,
        context_length: int,
        *,
        observation_shape: tuple[int, ...],
        observation_dtype: Any,
        action_shape: tuple[int, ...],
        action_dtype: Any,
        frame_stack: int | None = None,
        slack: int = 256,
    ) -> None:
        self.slots = slots
        self.context_length = context_length
        self.appended = 0
        self._frame_stack = frame_stack
        # The first stack of a window reaches back behind it.
        self._reach = context_length + (frame_stack or 1) - 1
        capacity = self._reach + slack
        self._returns = np.zeros((slots, capacity, 1), np.float32)
        self._observations = np.zeros((slots, capacity, *observation_shape), observation_dtype)
        self._actions = np.zeros((slots, capacity, *action_shape), action_dtype)
        self._timesteps = np.zeros((slots, capacity), np.int64)
        self._mask = np.zeros((slots, capacity), bool)
        self._end = self._reach  # the window is [end - K, end)

    @classmethod
    def of(cls, spec: PolicySpec, slots: int, context_length: int, *, slack: int = 256) -> ContextBuffer:
        """Return the windows that a policy acts on."""
        space, head = spec.observation_space, spec.head
        seen = spec.seen_space
        return cls(
            slots,
            context_length,
            observation_shape=space.shape or (),
            observation_dtype=encoder_of(seen, spec.model.encoder).dtype(seen),
            action_shape=head.shape,
            action_dtype=head.dtype,
            frame_stack=spec.model.frame_stack,
            slack=slack,
        )

    @property
    def _fields(self) -> tuple[Array, ...]:
        return tuple(getattr(self, name) for name in _FIELDS)

    def clear(self, slots: Array) -> None:
        """Forget the steps of some slots (index array or boolean mask): their windows are all padding."""
        begin = self._end - self._reach
        for values in self._fields:
            values[slots, begin : self._end] = 0

    def part(self, slots: Array) -> ContextBuffer:
        """Return the windows of some slots (indices) as a buffer of their own, a copy without slack."""
        found = copy(self)
        found.slots = len(slots)
        span = slice(self._end - self._reach, self._end)
        for name in _FIELDS:
            setattr(found, name, getattr(self, name)[slots, span])
        found._end = self._reach
        return found

    def put(self, slots: Array, part: ContextBuffer) -> None:
        """Take over the windows of a `part` as those of some slots (indices)."""
        ours = slice(self._end - self._reach, self._end)
        theirs = slice(part._end - self._reach, part._end)
        for own, new in zip(self._fields, part._fields, strict=True):
            own[slots, ours] = new[:, theirs]

    def append(self, returns_to_go: Array, observations: Array, timesteps: Array) -> None:
        """Add a step to every slot, with a zero placeholder for the action that is to come.

        Args:
            returns_to_go: `(N,)` raw.
            observations: `(N, *obs)`.
            timesteps: `(N,)`.
        """
        if self._end == self._mask.shape[1]:
            keep = self._reach - 1
            for values in self._fields:
                values[:, :keep] = values[:, self._end - keep :].copy()
            self._end = keep
        step = self._end
        self._returns[:, step, 0] = returns_to_go
        self._observations[:, step] = observations
        self._actions[:, step] = 0
        self._timesteps[:, step] = timesteps
        self._mask[:, step] = True
        self._end = step + 1
        self.appended += 1

    def set_actions(self, actions: Array) -> None:
        """Fill in the actions `(N, A)` or `(N,)` of the newest step."""
        self._actions[:, self._end - 1] = actions

    def set_returns(self, returns_to_go: Array, slots: Array | None = None) -> None:
        """Replace the returns-to-go `(n,)` (raw) of the newest step of some slots; None for all."""
        self._returns[slice(None) if slots is None else slots, self._end - 1, 0] = returns_to_go

    def window(self, slots: Array | None = None) -> Window[Array]:
        """Return the windows `(N, K, ...)` of all slots as views, or copy for the given slots."""
        span = slice(self._end - self.context_length, self._end)
        rows: Any = slice(None) if slots is None else slots
        spans = {id(self._observations): slice(self._end - self._reach, self._end)}
        returns, observations, actions, timesteps, mask = (
            values[rows, spans.get(id(values), span)] for values in self._fields
        )
        if self._frame_stack is not None:
            observations = stacks(observations, self._frame_stack)
        return Window(
            returns_to_go=returns, observations=observations, actions=actions, timesteps=timesteps, mask=mask
        )
