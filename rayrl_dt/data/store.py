"""Trajectories as flat arrays plus episode offsets: fast to sample, cheap to share, easy to map from disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rayrl_dt.data import returns
from rayrl_dt.data.info import DatasetInfo
from rayrl_dt.data.staging import replacing
from rayrl_dt.data.store_files import ARRAYS, HEADER, checksum, read, write_header
from rayrl_dt.envs.actions import ActionLayout, whole_range
from rayrl_dt.errors import UserError
from rayrl_dt.types import Normalizer, Trajectory

__all__ = ["DatasetInfo", "OwnSteps", "TrajectoryStore", "episode_arrays", "fit_normalizer"]

Array = np.ndarray[Any, Any]


def episode_arrays(episode: Trajectory, info: DatasetInfo, number: int) -> dict[str, Array]:
    """Return one episode's rows of a store's `observations`, `final_observations`, `actions` and `rewards`.

    Args:
        episode: T steps.
        info: says which shapes are right.
        number: the episode's number, for the message.

    Raises:
        UserError: the episode does not fit the spaces.
    """
    space = info.action_space
    expected = {"observations": info.observation_space.shape or (), "actions": space.shape or ()}
    for name, shape in expected.items():
        found = getattr(episode, name).shape[1:]
        if found != shape:
            raise UserError(
                f"{info.source}: episode {number} has {name} of shape {found}, the space says {shape}; "
                "check the data set"
            )
    allowed = whole_range(space)
    if allowed is not None and ((episode.actions < allowed[0]).any() or (episode.actions > allowed[1]).any()):
        raise UserError(
            f"{info.source}: episode {number} has actions {episode.actions.min()} to {episode.actions.max()}, "
            f"the space allows {allowed[0]} to {allowed[1]}; check the data set"
        )
    # Images stay bytes: four times smaller. Everything else is float32.
    image = episode.observations.dtype == np.uint8
    observations = np.asarray(episode.observations, np.uint8 if image else np.float32)
    return {
        "observations": observations[:-1],
        "final_observations": observations[-1:],
        "actions": np.asarray(episode.actions, np.float32 if allowed is None else np.int64),
        "rewards": np.asarray(episode.rewards, np.float32),
    }


def fit_normalizer(observations: Array | OwnSteps) -> Normalizer:
    """Return the statistics of `(N, *obs)` observations; images are left as they are."""
    if observations.dtype == np.uint8:
        return Normalizer.identity(observations.shape[1:])
    return Normalizer.fit(observations)


class OwnSteps:
    """One of a store's flat arrays, cut down to the steps of its own episodes; reads like an array, piece by piece.

    Args:
        store: perhaps a view that leaves episodes out.
        name: of the array.
    """

    def __init__(self, store: TrajectoryStore, name: str) -> None:
        self._store = store
        self._values: Array = getattr(store, name)
        self.dtype = self._values.dtype
        self.shape: tuple[int, ...] = (store.num_steps, *self._values.shape[1:])

    def __len__(self) -> int:
        return self._store.num_steps

    def __getitem__(self, steps: slice) -> Array:
        own: Array = self._values[self._store.rows(np.arange(*steps.indices(len(self))))]
        return own


@dataclass
class TrajectoryStore:
    """Whole episodes in flat arrays. N steps, E episodes.

    Build one with `from_trajectories`, `open` or a source (`rayrl_dt.data.sources.load`). Views made by
    `select` and `with_delayed_rewards` share the big arrays with their origin.

    Attributes:
        observations: `(N, *obs)` float32 (uint8 for images).
        actions: `(N, A)` float32 in environment units, or `(N,)` int64.
        rewards: `(N,)` float32 raw rewards.
        returns_to_go: `(N,)` float32 raw returns-to-go (`rayrl_dt.data.returns`).
        starts: `(E,)` int64 first step of each episode.
        lengths: `(E,)` int64.
        terminated: `(E,)` bool; False where the episode was cut.
        final_observations: `(E, *obs)` the observation after each episode's last action.
        info: where the data comes from.
        normalizer: observation statistics of the unfiltered data.
        delayed_reward: True if the rewards were moved to the episodes' ends.
        path: the folder that the arrays are mapped from, if any.
    """

    observations: Array
    actions: Array
    rewards: Array
    returns_to_go: Array
    starts: Array
    lengths: Array
    terminated: Array
    final_observations: Array
    info: DatasetInfo
    normalizer: Normalizer
    delayed_reward: bool = False
    path: Path | None = None

    @classmethod
    def from_trajectories(cls, trajectories: Iterable[Trajectory], info: DatasetInfo) -> TrajectoryStore:
        """Copy episodes into a new store.

        Raises:
            UserError: there is no episode, or an episode does not fit the spaces.
        """
        if info.observation_space.shape is None or not ActionLayout(info.action_space).plain:
            raise UserError(
                f"{info.source}: observations {info.observation_space} and actions {info.action_space} are not both "
                "arrays that models read; rayrl_dt.data.own.store_of_episodes lays episodes of any space out"
            )
        episodes = list(trajectories)
        if not episodes:
            raise UserError(f"{info.source} holds no episodes; choose another data set or a weaker filter")
        parts = [episode_arrays(episode, info, number) for number, episode in enumerate(episodes)]
        flat = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        lengths = np.array([len(episode) for episode in episodes], np.int64)
        starts = np.cumsum(lengths) - lengths
        return cls(
            observations=flat["observations"],
            actions=flat["actions"],
            rewards=flat["rewards"],
            final_observations=flat["final_observations"],
            returns_to_go=returns.returns_to_go(flat["rewards"], starts, lengths),
            starts=starts,
            lengths=lengths,
            terminated=np.array([episode.terminated for episode in episodes], bool),
            info=info,
            normalizer=fit_normalizer(flat["observations"]),
        )

    def __repr__(self) -> str:
        return (
            f"TrajectoryStore({self.info.source!r}, episodes={self.num_episodes}, steps={self.num_steps}, "
            f"observations={self.observations.shape[1:]}, actions={self.actions.shape[1:]})"
        )

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.lengths)

    @cached_property
    def num_steps(self) -> int:
        """The number of steps that can be sampled (those of the selected episodes)."""
        return int(self.lengths.sum())

    @cached_property
    def episode_returns(self) -> Array:
        """`(E,)` raw undiscounted returns."""
        result: Array = self.returns_to_go[self.starts].astype(np.float64)
        return result

    @cached_property
    def _ends(self) -> Array:
        ends: Array = np.cumsum(self.lengths)
        return ends

    def locate(self, steps: Array) -> tuple[Array, Array]:
        """Map step numbers in [0, num_steps) to (episode numbers, offsets within the episode)."""
        episodes = np.searchsorted(self._ends, steps, side="right")
        return episodes, steps - (self._ends[episodes] - self.lengths[episodes])

    def rows(self, steps: Array) -> Array:
        """Map step numbers in [0, num_steps) to rows of the flat arrays."""
        episodes, offsets = self.locate(steps)
        rows: Array = self.starts[episodes] + offsets
        return rows

    def trajectory(self, episode: int) -> Trajectory:
        """Return one episode (views of the flat arrays where possible)."""
        steps = slice(int(self.starts[episode]), int(self.starts[episode] + self.lengths[episode]))
        return Trajectory(
            observations=np.concatenate(
                [self.observations[steps], self.final_observations[episode : episode + 1]]
            ),
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            terminated=bool(self.terminated[episode]),
        )

    def select(self, episodes: Sequence[int] | Array) -> TrajectoryStore:
        """Return a view of some episodes, in the given order; statistics stay those of the full data."""
        index = np.asarray(episodes, np.int64)
        if len(index) == 0:
            raise UserError(f"no episode of {self.info.source} is left; choose a weaker filter")
        return replace(
            self,
            starts=self.starts[index],
            lengths=self.lengths[index],
            terminated=self.terminated[index],
            final_observations=self.final_observations[index],
        )

    def with_delayed_rewards(self) -> TrajectoryStore:
        """Return a view whose episodes pay their whole return at their last step."""
        rewards = returns.delay_rewards(self.rewards, self.starts, self.lengths)
        return replace(
            self,
            rewards=rewards,
            returns_to_go=returns.returns_to_go(rewards, self.starts, self.lengths),
            delayed_reward=True,
        )

    def nbytes(self) -> int:
        """Return the size of all arrays in bytes."""
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the arrays as `.npy` files plus `store.json`; the folder appears whole or not at all.

        Raises:
            UserError: the folder is there and neither empty nor a store, which would be replaced.
        """
        target = Path(folder)
        with replacing(target, header=HEADER) as aside:
            for name in ARRAYS:
                np.save(aside / f"{name}.npy", np.ascontiguousarray(getattr(self, name)))
            checksums = {name: checksum(getattr(self, name)) for name in ARRAYS}
            write_header(aside, self.info, self.normalizer, checksums, delayed_reward=self.delayed_reward)
        return target

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TrajectoryStore:
        """Map a saved store into memory, read-only; processes of one node share its pages.

        Raises:
            UserError: the folder is not a whole store.
        """
        path = Path(folder)
        arrays, info, normalizer, delayed_reward = read(path)
        # The episode table is small and hot: keep it in ordinary memory.
        for name in ("starts", "lengths", "terminated"):
            arrays[name] = np.array(arrays[name])
        return cls(
            # np.asarray drops the memmap subclass, whose every slice costs a Python call.
            **{name: np.asarray(array) for name, array in arrays.items()},
            info=info,
            normalizer=normalizer,
            delayed_reward=delayed_reward,
            path=path,
        )
