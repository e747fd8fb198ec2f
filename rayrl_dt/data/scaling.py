"""What a policy's outputs stand for in its data's units, and what is to be said about the scales of the data.

Returns and rewards are divided by scales that follow from the data, so that the unit of the reward changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.store import OwnSteps, TrajectoryStore
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.types import SMALLEST_STD

__all__ = [
    "action_chunks",
    "action_range",
    "return_scale",
    "reward_scale",
    "scale_notes",
    "scale_of",
    "warn_if_far",
]

_LOG = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_CHUNK = 262_144
# Bounds farther out than this times the largest action of the data, from zero, say nothing about actions.
_FAR = 100
# In critics' units rewards are of this size, as those of Hopper and Pendulum are raw: learning rates, temperatures and
# the weights of critics in the papers are for such.
_REWARD = 4.0
# And policies see returns of up to this size.
_RETURN = 4.0
# A reward that is this many times the others' size sets the scale alone, so that values stay within what critics learn.
_OUTLIER = 64.0
# A scale that is this many times another is a mistake rather than a choice.
_APART = 64.0
_RUNNING = ("NormalizeObservation", "NormalizeReward")
"""Wrappers of Gymnasium's that learn while an environment runs."""


def action_range(store: TrajectoryStore) -> tuple[Array, Array]:
    """Return the `(A,)` lowest and highest continuous action that a policy takes.

    These are the space's bounds, or the range of the data where there are none: a bound that is infinite, or more
    than a hundred times as large as the data's actions, is none. A single action is in the middle.
    """
    low, high, _ = _bounds(store)
    one, space = high <= low, store.info.action_space
    assert isinstance(space, gym.spaces.Box)
    choice = space.low < space.high
    least, most = np.where(choice, space.low, -np.inf), np.where(choice, space.high, np.inf)
    return np.where(one, np.maximum(low - 0.5, least), low), np.where(one, np.minimum(high + 0.5, most), high)


def action_chunks(store: TrajectoryStore) -> Iterator[Array]:
    """Return the actions of the store's own episodes, which in a view are not all of the array."""
    return _chunks(store, "actions")


def return_scale(store: TrajectoryStore) -> float:
    """Return what a policy's returns are divided by: a quarter of the largest absolute one of the data.

    So returns reach 4, about as far as in the papers (Hopper 3.2, of their 1,000). Where they reached 1, a Decision
    Transformer hardly looked at them. Where all are 0 the scale is 1.
    """
    return float(np.abs(store.episode_returns).max()) / _RETURN or 1.0


def reward_scale(store: TrajectoryStore) -> float:
    """Return what critics of a store's data divide rewards by; see `scale_of`."""
    return scale_of(_chunks(store, "rewards"))


def scale_of(pieces: Iterable[Array]) -> float:
    """Return what critics divide rewards by: a quarter of the mean |r| over the rewards that are not 0.

    Where most rewards are 0 a critic's values are as large as the few others make them, however rare those are. A
    largest reward beyond 64 times that mean is divided to 256. Where all are 0 the scale is 1.
    """
    total, count, largest = 0.0, 0, 0.0
    for rewards in pieces:
        sizes = np.abs(rewards, dtype=np.float64)
        total += float(sizes.sum())
        count += int(np.count_nonzero(sizes))
        largest = max(largest, float(sizes.max()))
    return max(total / count, largest / _OUTLIER) / _REWARD if count else 1.0


@cache
def warn_if_far(name: str, scale: float, automatic: float) -> None:
    """Say in one line of the log that a scale is far from the one that the data ask for; once in a process.

    Args:
        name: of the scale, with what it is, for instance "online.reward_scale".
        scale: that is used.
        automatic: that of the data.
    """
    if not automatic / _APART <= scale <= automatic * _APART:
        _LOG.warning(
            "%s is %g, and the data ask for %.3g: what was chosen for values of the usual size will not fit; check the "
            "unit of the rewards",
            name,
            scale,
            automatic,
        )


def scale_notes(store: TrajectoryStore) -> list[str]:
    """Return sentences about features and bounds that are not taken as they are, and rewards without a size."""
    info, normalizer = store.info, store.normalizer
    space = info.observation_space if info.recorded_space is None else info.recorded_space
    notes = [
        f"{Flattening(space).feature(index)} of observations is nearly constant, {normalizer.mean.flat[index]:.4g} "
        f"with noise: it is scaled by {normalizer.std.flat[index]:.3g}, and small shifts of it are not blown up"
        for index in normalizer.raised
    ]
    notes += [
        f"{Flattening(space).feature(index)} of observations varies by less than {SMALLEST_STD:g}, which counts as "
        "constant, so that policies do not see it: give it in a smaller unit, in the data and in the environment"
        for index in _unseen(store)
    ]
    if not any(rewards.any() for rewards in _chunks(store, "rewards")):
        notes.append(
            "all rewards are 0, so they say nothing about the size of those that an environment pays: where it pays "
            "more than about 1 a step, set training.return_scale, and reward_scale of critics"
        )
    wrappers = () if info.env_spec is None else info.env_spec.additional_wrappers
    notes += [
        f"the data were recorded in {wrapper.name}, whose running statistics are not recorded: where policies act it "
        "begins anew, and gives other numbers than the data's; record without it"
        for wrapper in wrappers
        if wrapper.name in _RUNNING
    ]
    if isinstance(info.action_space, gym.spaces.Box):
        *_, far = _bounds(store)
        notes += [
            f"the bounds of action {index}, {info.action_space.low[index]:g} to {info.action_space.high[index]:g}, are "
            "more than 100 times as large as the data's actions and count as none: the range of the data is used"
            for index in np.flatnonzero(far).tolist()
        ]
    return notes


def _unseen(store: TrajectoryStore) -> list[int]:
    """Return the features that vary, and are not scaled."""
    still = np.flatnonzero(store.normalizer.std.ravel() == 1.0)
    if store.observations.dtype == np.uint8 or not len(still):
        return []
    lowest, highest = np.full(len(still), np.inf), np.full(len(still), -np.inf)
    for chunk in _chunks(store, "observations"):
        values = chunk.reshape(len(chunk), -1)[:, still]
        lowest, highest = np.minimum(lowest, values.min(axis=0)), np.maximum(highest, values.max(axis=0))
    spread = highest - lowest
    # What deviates by exactly 1 spreads by more.
    unseen: list[int] = still[(spread > 0) & (spread < 1)].tolist()
    return unseen


def _chunks(store: TrajectoryStore, name: str) -> Iterator[Array]:
    steps = OwnSteps(store, name)
    for begin in range(0, len(steps), _CHUNK):
        yield steps[begin : begin + _CHUNK]


def _bounds(store: TrajectoryStore) -> tuple[Array, Array, Array]:
    """Return bounds, and where finite ones were replaced by the range of the data."""
    space = store.info.action_space
    assert isinstance(space, gym.spaces.Box)
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    extremes = [(chunk.min(axis=0), chunk.max(axis=0)) for chunk in action_chunks(store)]
    smallest = np.min([each for each, _ in extremes], axis=0)
    largest = np.max([each for _, each in extremes], axis=0)
    reach = np.maximum(np.abs(smallest), np.abs(largest))
    reach = _FAR * np.where(reach > 0, reach, 1.0)
    far = np.abs(low) > reach, np.abs(high) > reach
    infinite = np.isinf(low), np.isinf(high)
    replaced = (far[0] & ~infinite[0]) | (far[1] & ~infinite[1])
    return np.where(far[0], smallest, low), np.where(far[1], largest, high), replaced
