"""Logged data inside RLlib: loaded once, shared by every learner and trial of a node, sampled in the learner.

Ray Data moves about 75 window batches a second on this kind of data; sampling in the learner from shared arrays
moves thousands. The arrays are shared through the page cache where they are mapped from files, else through
Ray's object store: either way a node holds one copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray.rllib.offline.offline_data import OfflineData

from rayrl_dt.data import sources, windows
from rayrl_dt.data.balance import episode_law
from rayrl_dt.data.filters import below_return, top_percent
from rayrl_dt.data.returns import discounted_returns
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.seeding import numpy_generator
from rayrl_dt.types import Window

__all__ = ["BatchSource", "LoggedShare", "Sampling", "SequenceOfflineData", "SharedStore", "StoreIterator"]

_BIG_ARRAYS = ("observations", "actions", "rewards", "returns_to_go")


@dataclass(frozen=True)
class SharedStore:
    """A store that is cheap to send to another process.

    Attributes:
        store: the store, its big arrays left out if `path` or `refs` bring them.
        path: folder that the arrays are mapped from, where the receiver has it.
        refs: the same arrays in the object store, for receivers on other nodes.
    """

    store: TrajectoryStore
    path: Path | None = None
    refs: dict[str, Any] | None = None

    @classmethod
    def publish(cls, store: TrajectoryStore) -> SharedStore:
        """Prepare a store for sending; copy nothing if one node can map its files."""
        path = store.path
        # A delayed-reward view has rewards of its own, which the files do not hold.
        inline = {"rewards", "returns_to_go"} if store.delayed_reward else set()
        away = [name for name in _BIG_ARRAYS if name not in inline]
        alone = len([node for node in ray.nodes() if node["Alive"]]) == 1
        refs = None if path is not None and alone else {name: ray.put(getattr(store, name)) for name in away}
        empty: dict[str, Any] = {name: np.zeros(0, np.float32) for name in away}
        hollow = replace(store, **empty)
        return cls(hollow, path, refs)

    def open(self) -> TrajectoryStore:
        """Return the store with its arrays mapped read-only, without copying.

        Raises:
            UserError: this node has neither the files nor a way to the object store copy.
        """
        away = [name for name in _BIG_ARRAYS if len(getattr(self.store, name)) == 0]
        if self.path is not None and (self.path / "store.json").exists():
            full = TrajectoryStore.open(self.path)
            arrays: dict[str, Any] = {name: getattr(full, name) for name in away}
        elif self.refs is not None:
            arrays = {name: ray.get(self.refs[name]) for name in away}
        else:
            raise UserError(
                f"the data cache {self.path} is not readable on this node; set RAYRL_DT_CACHE to a folder "
                "that all nodes share"
            )
        return replace(self.store, **arrays)


@dataclass(frozen=True)
class LoggedShare:
    """The exact part of each batch that comes from logged data, the rest being what was collected.

    Attributes:
        fraction: of the windows, rounded to whole ones.
        first_step: gradient step from which on it falls.
        anneal_steps: gradient steps in which it falls linearly to 0; None for one that stays.
    """

    fraction: float
    first_step: int
    anneal_steps: int | None = None

    def windows(self, step: int, batch_size: int) -> int:
        """Return how many windows of a gradient step's batch are logged."""
        gone = 0.0 if self.anneal_steps is None else (step - self.first_step) / self.anneal_steps
        return round(self.fraction * min(1.0, max(0.0, 1.0 - gone)) * batch_size)


@dataclass(frozen=True)
class Sampling:
    """How batches of windows are drawn; batch n is a pure function of the data and (seed, rank, n).

    Attributes:
        batch_size: windows per batch.
        context_length: K.
        seed: of the run.
        window_starts: law of the windows' starts, "any" or "full".
        return_balance: how far rare returns are drawn more often, 0 (not at all) to 1 (all returns alike).
        successors: also sample the shifted windows.
        frame_stack: images of which the observation of a step is made; None for no stacks.
        episode_returns: also sample the returns of the windows' episodes.
        discount: of the returns that come with them; None for none.
        share: of logged data, where a batch is drawn in two parts; this samples one of them.
        logged: whether it is the logged one.
    """

    batch_size: int
    context_length: int
    seed: int
    window_starts: str = "any"
    return_balance: float = 0.0
    successors: bool = False
    frame_stack: int | None = None
    episode_returns: bool = False
    discount: float | None = None
    share: LoggedShare | None = None
    logged: bool = False

    def size(self, step: int) -> int:
        """Return how many windows it draws for a gradient step."""
        if self.share is None:
            return self.batch_size
        logged = self.share.windows(step, self.batch_size)
        return logged if self.logged else self.batch_size - logged

    def batches(
        self, store: TrajectoryStore, *, rank: int, first_step: int, count: int
    ) -> Iterator[Window[np.ndarray[Any, Any]]]:
        """Yield the batches of gradient steps `first_step` to `first_step + count - 1`."""
        law = episode_law(store, self.return_balance) if self.return_balance else None
        discounted = None
        if self.discount is not None:
            discounted = discounted_returns(store.rewards, store.starts, store.lengths, self.discount)
        for step in range(first_step, first_step + count):
            yield windows.sample(
                store,
                numpy_generator(self.seed, "logged-batch" if self.logged else "batch", rank, step),
                self.size(step),
                self.context_length,
                starts=self.window_starts,
                law=law,
                successors=self.successors,
                frame_stack=self.frame_stack,
                episode_returns=self.episode_returns,
                discounted=discounted,
            )


class BatchSource(Protocol):
    """What a learner draws its batches from."""

    def batches(self, *, rank: int, first_step: int, count: int) -> Iterator[Window[np.ndarray[Any, Any]]]:
        """Yield the batches of gradient steps `first_step` to `first_step + count - 1`."""


@dataclass(frozen=True)
class StoreIterator:
    """Draws from a store, in the learner's own process.

    Attributes:
        data: the store itself for a learner in this process, else a reference to its `SharedStore`.
        sampling: how.
    """

    data: TrajectoryStore | ray.ObjectRef[SharedStore]
    sampling: Sampling

    def batches(self, *, rank: int, first_step: int, count: int) -> Iterator[Window[np.ndarray[Any, Any]]]:
        """Yield the batches of gradient steps `first_step` to `first_step + count - 1`."""
        store = self.data if isinstance(self.data, TrajectoryStore) else _fetch(self.data)
        yield from self.sampling.batches(store, rank=rank, first_step=first_step, count=count)


@lru_cache(maxsize=2)
def _fetch(reference: ray.ObjectRef[SharedStore]) -> TrajectoryStore:
    """Open a shared store; a learner gets the same reference at every update, and open it once."""
    shared: SharedStore = ray.get(reference)
    return shared.open()


class SequenceOfflineData(OfflineData):
    """What RLlib's `Algorithm` builds from `config.offline_data(...)`: the store and its iterators.

    Building it also resolves the config from the data. RLlib builds offline data before anything that needs the
    resolved config, so the data is loaded once.

    Attributes:
        full: the data set before `top_percent`; evaluation targets come from it.
        store: the data that learners sample.
    """

    def __init__(self, config: Any) -> None:
        # The parent's constructor would start Ray Data; only its type is wanted (RLlib checks it).
        self.config = config
        self.full = sources.load(config.dataset, delayed_reward=config.delayed_reward)
        if config.below_return is not None:
            self.full = below_return(self.full, config.below_return)
        self.store = self.full if config.top_percent is None else top_percent(self.full, config.top_percent)
        self._shared: ray.ObjectRef[SharedStore] | None = None
        config.resolve(self.full)

    def iterators(self, num_learners: int, sampling: Sampling | None = None) -> list[BatchSource]:
        """Return one source per learner; they hold the same data and draw different batches.

        Args:
            num_learners: learners in other processes; 0 for the one in this process.
            sampling: how; None for the config's.
        """
        sampling = self.sampling if sampling is None else sampling
        if num_learners == 0:
            return [StoreIterator(self.store, sampling)]
        if self._shared is None:
            self._shared = ray.put(SharedStore.publish(self.store))
        return [StoreIterator(self._shared, sampling)] * num_learners

    @property
    def sampling(self) -> Sampling:
        """How the config wants batches to be drawn, from logged data and from a replay alike."""
        return Sampling(
            batch_size=self.config.train_batch_size_per_learner,
            context_length=self.config.sequence_model.context_length,
            seed=self.config.seed or 0,
            window_starts=self.config.window_starts,
            return_balance=self.config.return_balance,
            successors=self.config.samples_successors,
            frame_stack=self.config.resolved_spec.model.frame_stack,
            episode_returns=self.config.samples_episode_returns,
            discount=self.config.samples_discount,
        )
