"""The values that travel through the package: trajectories, context windows, normalizers.

Shape legend: B batch, K context length, T episode length, A action dimensions, `*obs` observation shape.
Everything here is in raw units (environment observations, actions and rewards; unscaled returns):
normalizing and scaling happen in one place, inside the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from rayrl_dt.devices import on_device
from rayrl_dt.errors import UserError

__all__ = [
    "ACTION_LIMIT",
    "SMALLEST_STD",
    "ArrayT",
    "Normalizer",
    "RawEpisode",
    "Trajectory",
    "Window",
    "as_array",
    "scalar_rewards",
]

ACTION_LIMIT = 1.0 - 1e-6
"""How far online policies go within [-1, 1], so that the atanh of every action is finite."""

SMALLEST_STD = 1e-6
"""A feature of observations that deviates by less counts as constant."""

# Deviations in units of a feature's scale: less is noise around a constant, and what it is raised to then.
_NEARLY_CONSTANT = 3e-4
_RAISED = 0.01
# Of the deviation: steps of noise are sqrt(2) deviations long, those of a signal far shorter.
_JITTER = 0.5

ArrayT = TypeVar("ArrayT", np.ndarray[Any, Any], torch.Tensor)


def _repr(value: Any) -> str:
    """Describe a dataclass by the dtypes and shapes of its arrays: their numbers would fill the screen."""
    shown = ((field.name, getattr(value, field.name)) for field in fields(value) if field.repr)
    described = (f"{name}={_described(found)}" for name, found in shown if found is not None)
    return f"{type(value).__name__}({', '.join(described)})"


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"
    return repr(value)


def as_array(values: Any) -> np.ndarray[Any, Any]:
    """Return values as an array; objects that are numbers become numbers, other objects stay objects."""
    try:
        array = np.asarray(values)
        return np.array(array.tolist()) if array.dtype == object else array
    except ValueError:  # of several lengths
        return np.empty((), object)


def scalar_rewards(rewards: Any, count: int) -> np.ndarray[Any, Any]:
    """Return `(count,)` rewards, whatever shape they came in: `(count, 1)` becomes one number each.

    Raises:
        UserError: there are more or fewer, or they are no numbers.
    """
    values = as_array(rewards)
    if values.dtype.kind not in "fiub" or values.size != count:
        raise UserError(
            f"rewards are {values.dtype} of shape {values.shape}; they must be one number for each of {count} steps"
        )
    return values.reshape(count)


@dataclass(frozen=True)
class Trajectory:
    """One whole episode.

    Attributes:
        observations: `(T+1, *obs)`, the last one being the observation after the last action.
        actions: `(T, A)` continuous or `(T,)` discrete, in environment units.
        rewards: `(T,)` raw rewards; `(T, 1)` is taken, too.
        terminated: True if the episode ended in a terminal state, False if it was cut (time limit).

    Raises:
        UserError: the lengths disagree, the episode is empty, or a value is not finite.
    """

    observations: np.ndarray[Any, Any]
    actions: np.ndarray[Any, Any]
    rewards: np.ndarray[Any, Any]
    terminated: bool

    def __post_init__(self) -> None:
        for name in ("observations", "actions"):
            values = as_array(getattr(self, name))
            if values.dtype.kind not in "fiub" or values.ndim == 0:
                raise UserError(
                    f"a trajectory's {name} are no array of numbers but {type(getattr(self, name)).__name__}; "
                    "rayrl_dt.data.own.store_of_episodes flattens them"
                )
            object.__setattr__(self, name, values)
        steps = len(self.rewards)
        object.__setattr__(self, "rewards", scalar_rewards(self.rewards, steps))
        if steps == 0:
            raise UserError("a trajectory has no steps; drop empty episodes before building a store")
        if len(self.observations) != steps + 1 or len(self.actions) != steps:
            raise UserError(
                f"a trajectory has {len(self.observations)} observations, {len(self.actions)} actions and "
                f"{steps} rewards; it needs T+1, T and T"
            )
        for name in ("observations", "actions", "rewards"):
            values = getattr(self, name)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise UserError(f"a trajectory holds NaN or infinite {name}; remove or repair that episode")

    def __len__(self) -> int:
        return len(self.rewards)

    __repr__ = _repr

    @property
    def episode_return(self) -> float:
        """The undiscounted sum of rewards (raw return)."""
        return float(np.sum(self.rewards, dtype=np.float64))


@dataclass(frozen=True)
class RawEpisode:
    """One episode as the environment gave it, of any space.

    Attributes:
        observations: an array `(T+1, *obs)`, or for Dict and Tuple spaces a dict or tuple of such.
        actions: `(T, *action)`.
        rewards: `(T,)`.
        terminated: whether the episode ended in a terminal state; if not, it was truncated.
        seed: of the environment's reset, if known.
        infos: a dict of arrays `(T+1, ...)`, kept but not read back.
    """

    observations: Any
    actions: np.ndarray[Any, Any]
    rewards: np.ndarray[Any, Any]
    terminated: bool
    seed: int | None = None
    infos: dict[str, Any] | None = None


@dataclass(frozen=True)
class Window(Generic[ArrayT]):
    """A batch of left-padded context windows, in raw units.

    Attributes:
        returns_to_go: `(B, K, 1)` raw return-to-go R_t = sum of r_t' for t' >= t.
        observations: `(B, K, *obs)`.
        actions: `(B, K, A)` or `(B, K)`.
        timesteps: `(B, K)` absolute episode steps.
        mask: `(B, K)` bool, True at real steps. Padding comes first and holds zeros; but stacks of images in padding
            may hold images of earlier steps (`rayrl_dt.data.windows.gather`).
        rewards: `(B, K)` raw rewards, only in windows sampled with their successor.
        terminated: `(B, K)` bool, True where the step ended the episode in a terminal state.
        discounted_returns: `(B, K)` raw discounted returns from each step on, where a critic asks for them.
        next: the same windows shifted by one step: observations s_{t+1}, actions a_{t+1} with a zero in
            the last slot, hindsight returns-to-go R_{t+1} (0 past the end), timesteps t+1.
        episode_returns: `(B, K)` raw return of the whole episode that a window is of, only where it is asked for.
    """

    returns_to_go: ArrayT
    observations: ArrayT
    actions: ArrayT
    timesteps: ArrayT
    mask: ArrayT
    rewards: ArrayT | None = None
    terminated: ArrayT | None = None
    discounted_returns: ArrayT | None = None
    next: Window[ArrayT] | None = None
    episode_returns: ArrayT | None = None

    __repr__ = _repr

    @property
    def batch_size(self) -> int:
        """The number of windows, B."""
        return int(self.mask.shape[0])

    @property
    def context_length(self) -> int:
        """The steps of a window, K."""
        return int(self.mask.shape[1])

    def to_dict(self) -> dict[str, Any]:
        """Return a nested dict of arrays without the absent fields."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if self.next is not None:
            values["next"] = self.next.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Window[Any]:
        """Build a window from what `to_dict` returns; keys that are not fields are ignored."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "next" in known:
            known["next"] = cls.from_dict(known["next"])
        return Window(**known)

    def to_torch(self, device: torch.device | str = "cpu") -> Window[torch.Tensor]:
        """Return the window as tensors on `device`; CPU tensors share memory with the arrays."""
        tensors = {
            f.name: on_device(torch.as_tensor(getattr(self, f.name)), device)
            for f in fields(self)
            if f.name != "next" and getattr(self, f.name) is not None
        }
        return Window(**tensors, next=None if self.next is None else self.next.to_torch(device))

    def last(self, steps: int) -> Window[ArrayT]:
        """Return the window of the last `steps` steps (at most K)."""
        return self._cut((slice(None), slice(-steps, None)))

    def rows(self, begin: int, end: int) -> Window[ArrayT]:
        """Return the windows `begin` to `end - 1` of the batch."""
        return self._cut((slice(begin, end),))

    def _cut(self, where: tuple[slice, ...]) -> Window[ArrayT]:
        cut = {
            f.name: getattr(self, f.name)[where]
            for f in fields(self)
            if f.name != "next" and getattr(self, f.name) is not None
        }
        return replace(self, **cut, next=None if self.next is None else self.next._cut(where))


@dataclass(frozen=True)
class Normalizer:
    """Observation statistics over *all* steps of the training data, before any filter.

    Attributes:
        mean: `(*obs)` float32.
        std: `(*obs)` float32, at least 1e-6; 1 where the data never varies, so that an unseen value does
            not blow up.
        raised: numbers of the features whose `std` is larger than the data's, since they vary by nothing but noise.
    """

    mean: np.ndarray[Any, Any]
    std: np.ndarray[Any, Any]
    raised: tuple[int, ...] = field(default=(), repr=False)

    __repr__ = _repr

    @classmethod
    def identity(cls, shape: tuple[int, ...]) -> Normalizer:
        """Return the normalizer that changes nothing."""
        return cls(np.zeros(shape, np.float32), np.ones(shape, np.float32))

    @classmethod
    def fit(cls, observations: Any, *, chunk: int = 262_144) -> Normalizer:
        """Return the statistics of `(N, *obs)` observations, read in chunks (they may be memory-mapped).

        A feature that jitters from step to step by less than 0.0003 of its scale is noise around a constant. Its
        deviation is raised to 0.01 of the scale, so that a small shift is not blown up to hundreds of deviations. The
        scale is the feature's size, or the deviation of most features if that is larger.
        """
        count = len(observations)
        total = np.zeros(observations.shape[1:], np.float64)
        for begin in range(0, count, chunk):
            total += observations[begin : begin + chunk].sum(axis=0, dtype=np.float64)
        mean = total / count
        squares = np.zeros_like(total)
        for begin in range(0, count, chunk):
            part = observations[begin : begin + chunk].astype(np.float64) - mean
            squares += np.square(part).sum(axis=0)
        std = np.sqrt(squares / count)
        varies = std >= SMALLEST_STD
        typical = np.median(std[varies]) if varies.any() else 0.0
        scale = np.maximum(np.abs(mean), typical)
        raised = varies & (std < _NEARLY_CONSTANT * scale)
        if raised.any():
            steps, number = np.zeros(int(raised.sum())), 0
            for begin in range(0, count, chunk):
                part = observations[begin : begin + chunk][:, raised].astype(np.float64)
                steps += np.square(np.diff(part, axis=0)).sum(axis=0)
                number += len(part) - 1
            raised[raised] = np.sqrt(steps / max(number, 1)) > _JITTER * std[raised]
        std = np.where(varies, std + SMALLEST_STD, 1.0)
        std = np.where(raised, _RAISED * scale, std)
        return cls(mean.astype(np.float32), std.astype(np.float32), tuple(np.flatnonzero(raised).tolist()))

    def apply(self, observations: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return (observations - mean) / std."""
        normalized: np.ndarray[Any, Any] = (observations - self.mean) / self.std
        return normalized
