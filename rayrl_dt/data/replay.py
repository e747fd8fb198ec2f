"""Replay of whole trajectories: first the best of the logged data, then what the policy itself collects.

Episodes leave in the order in which they came: the logged ones from the lowest return upwards, then the collected ones,
oldest first (Online Decision Transformer, section 5 and its code). Returns-to-go are those that the episodes achieved
(hindsight), computed once when they come in. What a rollout was asked for is kept beside them: its actions were drawn
under that, so what weighs them by their probability has to ask for it again.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayrl_dt.data import returns
from rayrl_dt.data.array_files import BROKEN, ArraySpace, read_arrays
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore, episode_arrays
from rayrl_dt.data.store_files import ARRAYS
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.types import Normalizer, Trajectory

__all__ = ["ReplayCounts", "TrajectoryReplay", "best_episodes"]

Array = np.ndarray[Any, Any]

_STEP_ARRAYS = ("observations", "actions", "rewards", "returns_to_go")
_EPISODE_ARRAYS = ("lengths", "terminated", "final_observations", "numbers", "asked")
_FIRST_ROWS = 1024
# Of the names of arrays in a saved replay.
_STEPS, _EPISODES, _COUNTS = "steps/", "episodes/", "counts"


def best_episodes(store: TrajectoryStore, count: int) -> Array:
    """Return the numbers of the `count` episodes of highest return, in ascending order of return."""
    order = np.argsort(store.episode_returns, kind="stable")
    chosen: Array = order[-count:] if count > 0 else order[:0]
    return chosen


@dataclass(frozen=True)
class ReplayCounts:
    """What has happened to a replay since it was made.

    Attributes:
        added_episodes: episodes taken in.
        added_steps: their steps.
        evicted_episodes: episodes that left.
        evicted_steps: their steps.
    """

    added_episodes: int = 0
    added_steps: int = 0
    evicted_episodes: int = 0
    evicted_steps: int = 0


class TrajectoryReplay:
    """A first-in-first-out store of whole episodes that `rayrl_dt.data.windows` samples like any other.

    The flat arrays have slack behind the last episode and a dead part before the first; a full array is compacted, or
    doubled where compaction would free less than half. Adding a step thus costs O(1) on average.

    Args:
        info: spaces that episodes must fit.
        normalizer: observation statistics that samples carry along; frozen, as the policy's are.
        capacity: most episodes at a time.
        capacity_steps: most steps at a time; None for no such bound. The newest episode always stays.
        memory_bytes: arrays larger than this together are mapped from temporary files; None keeps all in memory.

    Attributes:
        capacity: most episodes at a time.
        capacity_steps: most steps at a time, or None.
        counts: what came in and what left.
    """

    def __init__(
        self,
        info: DatasetInfo,
        normalizer: Normalizer,
        *,
        capacity: int,
        capacity_steps: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        if capacity < 1:
            raise UserError(f"the replay's capacity is {capacity} trajectories; it must be at least 1")
        if capacity_steps is not None and capacity_steps < 1:
            raise UserError(
                f"the replay's capacity is {capacity_steps} steps; it must be at least 1, or null"
            )
        self.capacity = capacity
        self.capacity_steps = capacity_steps
        self.counts = ReplayCounts()
        self._info = info
        self._normalizer = normalizer
        self._space = ArraySpace(memory_bytes)
        self._steps: dict[str, Array] = {}
        self._episodes: dict[str, Array] = {}
        self._begin = self._end = 0  # of the steps in use
        self._first = self._last = 0  # of the episodes in use
        self._view: TrajectoryStore | None = None

    def __len__(self) -> int:
        return self._last - self._first

    @property
    def num_steps(self) -> int:
        """Steps in the replay."""
        return self._end - self._begin

    @property
    def store(self) -> TrajectoryStore:
        """The replay's content as a store; valid until the next episode is added.

        Raises:
            UserError: the replay is empty.
        """
        if len(self) == 0:
            raise UserError(
                "the replay is empty; fill it with logged episodes, or collect some before learning"
            )
        if self._view is None:
            steps, episodes = slice(self._begin, self._end), slice(self._first, self._last)
            lengths = self._episodes["lengths"][episodes]
            self._view = TrajectoryStore(
                observations=self._steps["observations"][steps],
                actions=self._steps["actions"][steps],
                rewards=self._steps["rewards"][steps],
                returns_to_go=self._steps["returns_to_go"][steps],
                starts=np.cumsum(lengths) - lengths,
                lengths=lengths,
                terminated=self._episodes["terminated"][episodes],
                final_observations=self._episodes["final_observations"][episodes],
                info=self._info,
                normalizer=self._normalizer,
            )
        return self._view

    def fill(self, store: TrajectoryStore) -> None:
        """Take in the best logged episodes, as many as fit, from the lowest return of them upwards."""
        best = best_episodes(store, self.capacity)
        if self.capacity_steps is not None:
            behind = np.cumsum(store.lengths[best][::-1])[::-1]
            best = best[behind <= self.capacity_steps] if (behind <= self.capacity_steps).any() else best[-1:]
        for episode in best.tolist():
            self.add([store.trajectory(episode)])

    def add(self, episodes: Sequence[Trajectory], asked: Sequence[float] | None = None) -> None:
        """Take in finished episodes; the oldest leave to make room.

        Args:
            episodes: they may be logged or collected.
            asked: the raw return that each was asked for at its first step; None for logged ones.

        Raises:
            UserError: an episode does not fit the spaces; those before it are in, it and those after it are not.
        """
        for episode, target in zip(episodes, asked or [math.nan] * len(episodes), strict=True):
            self._append(episode, target)
            self._evict()

    def _append(self, episode: Trajectory, asked: float) -> None:
        rows = episode_arrays(episode, self._info, self.counts.added_episodes)
        length = len(episode)
        zero, lengths = np.zeros(1, np.int64), np.array([length], np.int64)
        rows["returns_to_go"] = returns.returns_to_go(rows["rewards"], zero, lengths)
        single = {
            "lengths": lengths,
            "terminated": np.array([episode.terminated]),
            "final_observations": rows["final_observations"],
            "numbers": np.array([self.counts.added_episodes], np.int64),
            "asked": np.array([asked], np.float64),
        }
        self._begin, self._end = _make_room(
            self._steps, {name: rows[name] for name in _STEP_ARRAYS}, self._begin, self._end, self._space
        )
        self._first, self._last = _make_room(
            self._episodes, single, self._first, self._last, ArraySpace(None)
        )
        self._view = None
        self.counts = replace(
            self.counts,
            added_episodes=self.counts.added_episodes + 1,
            added_steps=self.counts.added_steps + length,
        )

    def _evict(self) -> None:
        limit = self.capacity_steps
        while len(self) > self.capacity or (limit is not None and self.num_steps > limit and len(self) > 1):
            length = int(self._episodes["lengths"][self._first])
            self._first += 1
            self._begin += length
            self._view = None
            self.counts = replace(
                self.counts,
                evicted_episodes=self.counts.evicted_episodes + 1,
                evicted_steps=self.counts.evicted_steps + length,
            )

    def numbers(self) -> Array:
        """`(E,)` serial numbers of the episodes, from 0 in the order in which they came; none occurs twice."""
        numbers: Array = (
            self._episodes["numbers"][self._first : self._last].copy() if len(self) else np.zeros(0)
        )
        return numbers

    def episode_returns(self) -> Array:
        """`(E,)` raw returns of the episodes, a copy; the replay must not be empty."""
        return self.store.episode_returns

    def asked_returns_to_go(self) -> Array:
        """`(N,)` raw returns-to-go that the steps of `store` were asked for: NaN in logged episodes.

        That of the first step is the target, and each reward is taken off the next one, as in a rollout.
        """
        store, asked = self.store, self._episodes["asked"][self._first : self._last]
        earned = np.repeat(store.episode_returns, store.lengths) - store.returns_to_go  # before each step
        returns: Array = (np.repeat(asked, store.lengths) - earned).astype(np.float32)
        return returns

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs: plain arrays (copies) and numbers."""
        steps, episodes = slice(self._begin, self._end), slice(self._first, self._last)
        return {
            "steps": {name: array[steps].copy() for name, array in self._steps.items()},
            "episodes": {name: array[episodes].copy() for name, array in self._episodes.items()},
            "counts": self.counts,
        }

    def save(self, file: Path) -> None:
        """Write the content to one `.npz` file, which appears whole or not at all; nothing is copied in memory."""
        steps, episodes = slice(self._begin, self._end), slice(self._first, self._last)
        arrays: dict[str, Any] = {f"{_STEPS}{name}": array[steps] for name, array in self._steps.items()}
        arrays |= {f"{_EPISODES}{name}": array[episodes] for name, array in self._episodes.items()}
        aside = file.with_name(f".{file.name}.tmp")
        try:
            with aside.open("wb") as stream:
                # Not compressed: a million steps take a second, and deflating them half a minute.
                np.savez(stream, counts=np.array(astuple(self.counts), np.int64), **arrays)
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)

    def load(self, file: Path) -> None:
        """Replace the content by that of a file that `save` wrote; past the memory bound it goes to mapped files.

        Raises:
            UserError: the file is missing or truncated, or the disk has no room for mapped files.
        """
        try:
            with zipfile.ZipFile(file) as archive:
                parts: dict[str, dict[str, Array]] = {}
                for prefix, space in (
                    (_STEPS, self._space),
                    (_EPISODES, ArraySpace(None)),
                    (_COUNTS, ArraySpace(None)),
                ):
                    members = {
                        name.removeprefix(prefix).removesuffix(".npy"): name
                        for name in archive.namelist()
                        if name.startswith(prefix)
                    }
                    parts[prefix] = read_arrays(archive, members, space)
            steps, episodes = parts[_STEPS], parts[_EPISODES]
            if episodes:  # files of versions that kept no targets
                episodes.setdefault("asked", np.full(len(episodes["lengths"]), np.nan))
            counts = ReplayCounts(*parts[_COUNTS][""].tolist())
            _check(steps, episodes, self._info)
        except UserError:
            raise
        except BROKEN as error:
            raise UserError(
                f"the replay {file} is missing or broken ({one_line(error)}); resume from an earlier checkpoint"
            ) from error
        self._replace(steps, episodes, counts)

    def restore(self, state: dict[str, Any]) -> None:
        """Replace the content by a saved one; windows drawn afterwards equal those that would have been drawn."""
        saved: dict[str, Array] = state["steps"]
        steps = self._space.zeros({name: (array.shape, array.dtype) for name, array in saved.items()})
        for name, array in saved.items():
            steps[name][:] = array
        self._replace(steps, dict(state["episodes"]), state["counts"])

    def _replace(self, steps: dict[str, Array], episodes: dict[str, Array], counts: ReplayCounts) -> None:
        self._steps, self._episodes = steps, episodes
        self._begin, self._end = 0, len(steps.get("rewards", ()))
        self._first, self._last = 0, len(episodes.get("lengths", ()))
        self.counts = counts
        self._view = None
        self._evict()


def _check(steps: dict[str, Array], episodes: dict[str, Array], info: DatasetInfo) -> None:
    """Raise ValueError where saved arrays do not fit one another or the spaces."""
    if not steps and not episodes:
        return
    count, number = len(steps["rewards"]), len(episodes["lengths"])
    observation, action = (space.shape or () for space in (info.observation_space, info.action_space))
    shapes = {
        "observations": (count, *observation),
        "actions": (count, *action),
        "final_observations": (number, *observation),
    }
    for name, array in (*steps.items(), *episodes.items()):
        shape = shapes.get(name, (count,) if name in steps else (number,))
        if array.shape != shape or array.dtype.kind not in "fiub":
            raise ValueError(f"{name} are {array.dtype} of shape {array.shape}, not numbers of shape {shape}")
    if {*steps} != {*_STEP_ARRAYS} or {*episodes} != {*_EPISODE_ARRAYS}:
        raise ValueError(f"it holds {', '.join((*steps, *episodes))}")
    lengths = episodes["lengths"]
    if (lengths < 1).any() or lengths.sum() != count:
        raise ValueError("its episodes do not add up to its steps")


def _make_room(
    arrays: dict[str, Array], rows: dict[str, Array], begin: int, end: int, space: ArraySpace
) -> tuple[int, int]:
    """Write rows behind `end`, moving or growing the arrays if need be; return the new (begin, end)."""
    count = len(next(iter(rows.values())))
    capacity = len(next(iter(arrays.values()))) if arrays else 0
    if end + count > capacity:
        used = end - begin
        size = max(2 * (used + count), _FIRST_ROWS) if used + count > capacity // 2 else capacity
        shapes = {name: ((size, *new.shape[1:]), new.dtype) for name, new in rows.items()}
        for name, array in space.zeros(shapes).items():
            if used:
                array[:used] = arrays[name][begin:end]
            arrays[name] = array
        begin, end = 0, used
    for name, new in rows.items():
        arrays[name][end : end + count] = new
    return begin, end + count


# `TrajectoryStore` and this module must agree on what an episode consists of.
assert {*_STEP_ARRAYS, *_EPISODE_ARRAYS} - {"numbers", "asked"} == {*ARRAYS} - {"starts"}
