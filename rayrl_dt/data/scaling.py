"""What a policy's outputs stand for in its data's units, and what is to be said about the scales of the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.store import OwnSteps, TrajectoryStore
from rayrl_dt.envs.observations import Flattening

__all__ = ["action_chunks", "action_range", "scale_notes"]

Array = np.ndarray[Any, Any]

_CHUNK = 262_144
# Bounds farther out than this times the largest action of the data, from zero, say nothing about actions.
_FAR = 100


def action_range(store: TrajectoryStore) -> tuple[Array, Array]:
    """Return the `(A,)` lowest and highest continuous action that a policy takes.

    These are the space's bounds, or the range of the data where there are none: a bound that is infinite, or more
    than a hundred times as large as the data's actions, is none.
    """
    low, high, _ = _bounds(store)
    return low, np.where(high > low, high, low + 1.0)


def action_chunks(store: TrajectoryStore) -> Iterator[Array]:
    """Return the actions of the store's own episodes, which in a view are not all of the array."""
    actions = OwnSteps(store, "actions")
    for begin in range(0, len(actions), _CHUNK):
        yield actions[begin : begin + _CHUNK]


def scale_notes(store: TrajectoryStore) -> list[str]:
    """Return sentences about features and bounds that are not taken as they are."""
    info, normalizer = store.info, store.normalizer
    space = info.observation_space if info.recorded_space is None else info.recorded_space
    notes = [
        f"{Flattening(space).feature(index)} of observations is nearly constant, {normalizer.mean.flat[index]:.4g} "
        f"with noise: it is scaled by {normalizer.std.flat[index]:.3g}, and small shifts of it are not blown up"
        for index in normalizer.raised
    ]
    if isinstance(info.action_space, gym.spaces.Box):
        *_, far = _bounds(store)
        notes += [
            f"the bounds of action {index}, {info.action_space.low[index]:g} to {info.action_space.high[index]:g}, are "
            "more than 100 times as large as the data's actions and count as none: the range of the data is used"
            for index in np.flatnonzero(far).tolist()
        ]
    return notes


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
