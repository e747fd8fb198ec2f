"""What is left out of a data set, or clipped, when it is read: nobody loses a data set to a handful of bad episodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.info import NOTES, DatasetInfo
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.errors import UserError
from rayrl_dt.types import Trajectory

__all__ = ["clean"]

Array = np.ndarray[Any, Any]

_MOST_BAD = 0.5
# Of a feature's spread, in what float32 makes of it.
_MOST_ROUNDING = 0.01


def clean(
    attempts: Iterable[Callable[[], Trajectory]], info: DatasetInfo, flattening: Flattening
) -> Iterator[Trajectory]:
    """Yield the good episodes; when the last is out, `info.metadata` holds the notes.

    Args:
        attempts: one for each episode; raises UserError for a bad one.
        info: of the data set.
        flattening: how its observations became arrays.

    Raises:
        UserError: most episodes are bad, or most actions lie outside their bounds.
    """
    notes = info.metadata.pop(NOTES, [])
    notes += [
        f"the part {name} of observations is left out: it is no numbers" for name in flattening.left_out
    ]
    notes += [
        f"the picture {name} of observations is read as a row of numbers; convolutions read observations that are one "
        "picture of bytes (uint8) and nothing else"
        for name in flattening.unrolled
    ]
    bad: Counter[str] = Counter()
    first_bad: UserError | None = None
    kept = 0
    clipping, rounding = _Clipping(info), _Rounding()
    for attempt in attempts:
        try:
            recorded = attempt()
            # Again a check: what is finite in double precision may not be in float32.
            episode = replace(
                recorded,
                observations=_stored(recorded.observations),
                rewards=recorded.rewards.astype(np.float32, copy=False),
            )
        except UserError as error:
            first_bad = first_bad or error
            bad[_kind(error)] += 1
            continue
        kept += 1
        rounding.add(recorded.observations)
        yield replace(episode, actions=clipping(episode.actions))
    total = kept + bad.total()
    if first_bad is not None and (kept == 0 or bad.total() > _MOST_BAD * total):
        raise UserError(f"{bad.total()} of {total} episodes of {info.source} are bad; {first_bad}")
    if first_bad is not None:
        kinds = "; ".join(f"{count} x {kind}" for kind, count in bad.most_common(3))
        notes.append(f"{bad.total()} of {total} episodes are left out: {kinds}")
    notes += clipping.notes()
    notes += rounding.notes(flattening)
    if notes:
        info.metadata[NOTES] = notes


class _Clipping:
    """Clips actions to the bounds of their space, and counts."""

    def __init__(self, info: DatasetInfo) -> None:
        space = info.action_space
        self._source = info.source
        # In the actions' own precision: float32(0.4) is above 0.4.
        self._bounds = (
            (space.low.astype(np.float32), space.high.astype(np.float32))
            if isinstance(space, gym.spaces.Box)
            else None
        )
        self._numbers = self._clipped = 0
        self._farthest = 0.0

    def __call__(self, actions: Array) -> Array:
        if self._bounds is None:
            return actions
        low, high = self._bounds
        beyond = np.maximum(actions - high, low - actions)
        outside = beyond > 0
        self._numbers += actions.size
        if not outside.any():
            return actions
        self._clipped += int(outside.sum())
        self._farthest = max(self._farthest, float(beyond[outside].max()))
        clipped: Array = np.clip(actions, low, high)
        return clipped

    def notes(self) -> list[str]:
        if not self._clipped:
            return []
        share = self._clipped / self._numbers
        if share > _MOST_BAD:
            raise UserError(
                f"{self._source}: {share:.0%} of the actions lie up to {self._farthest:g} outside their bounds; "
                "they are in another unit than the action space: rescale one of them"
            )
        return [
            f"{self._clipped:,} of {self._numbers:,} numbers of actions lie up to {self._farthest:.3g} outside their "
            "bounds and are clipped"
        ]


class _Rounding:
    """Watches what float32 leaves of observations that came in double precision."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Array | None = None

    def add(self, observations: Array) -> None:
        """Count an episode."""
        if observations.dtype != np.float64:
            return
        if self._sums is None:
            self._origin = observations[0]
            self._sums = np.zeros((3, *observations.shape[1:]))
        self._count += len(observations)
        from_first = observations - self._origin
        error = observations - observations.astype(np.float32)
        self._sums += [from_first.sum(0), np.square(from_first).sum(0), np.square(error).sum(0)]

    def notes(self, flattening: Flattening) -> list[str]:
        if self._sums is None:
            return []
        mean, square, error = self._sums / self._count
        spread = np.sqrt(np.maximum(square - np.square(mean), 0))
        lost: list[int] = np.flatnonzero((np.sqrt(error) > _MOST_ROUNDING * spread) & (spread > 0)).tolist()
        return [
            f"{flattening.feature(index)} of observations varies by {spread.flat[index]:.3g} around "
            f"{(self._origin + mean).flat[index]:.10g}, of which float32 keeps little: subtract an offset from "
            "it in the data and in the environment"
            for index in lost
        ]


def _stored(observations: Array) -> Array:
    with np.errstate(over="ignore"):
        return observations if observations.dtype == np.uint8 else observations.astype(np.float32, copy=False)


def _kind(error: UserError) -> str:
    """Return what is wrong, without the numbers that differ from episode to episode and without the remedy."""
    text = str(error).partition(";")[0]
    return re.sub(r"\d+", "N", re.sub(r"^.*?episode_?\s?\d+: ", "", text))
