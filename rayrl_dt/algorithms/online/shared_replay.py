"""The replay as a Ray actor: one for all runners and learners, with the interface of the one in this process.

It lives on the driver's node, where checkpoints are written. Batches are drawn in the actor and arrive ahead of
their use, so that a learner waits for arithmetic only. If the actor dies, its content is gone and the run stops: the
last checkpoint holds a replay that fits its weights, and a replay pieced together from an older one would not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayrl_dt.algorithms.offline_data import BatchSource, Sampling, SharedStore, StoreIterator
from rayrl_dt.algorithms.online.config import OnlineConfig
from rayrl_dt.data.replay import ReplayCounts, TrajectoryReplay
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.seeding import numpy_generator
from rayrl_dt.types import Normalizer, Trajectory, Window

__all__ = ["ReplayIterator", "SharedReplay", "episode_targets", "new_replay", "sources"]

Array = np.ndarray[Any, Any]

_BATCHES_PER_REQUEST = 10
_REQUESTS_AHEAD = 2


class _ReplayHost:
    """Holds the replay; anything that it is asked for is a method or property of it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.replay = TrajectoryReplay(**arguments)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method, or read a property."""
        value = getattr(self.replay, name)
        return value(*arguments) if callable(value) else value

    def size(self) -> tuple[int, int]:
        """Return episodes and steps."""
        return len(self.replay), self.replay.num_steps

    def fill(self, shared: SharedStore) -> None:
        """Take in the best episodes of a store."""
        self.replay.fill(shared.open())

    def sample(self, sampling: Sampling, rank: int, first_step: int, count: int) -> list[Window[Array]]:
        """Return batches of windows."""
        return list(sampling.batches(self.replay.store, rank=rank, first_step=first_step, count=count))


class SharedReplay:
    """What `TrajectoryReplay` is, in a process of its own.

    Args:
        arguments: of `TrajectoryReplay`.

    Raises:
        UserError: from every method, when the actor has died.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        TrajectoryReplay(**arguments)  # refuses bad arguments here rather than over there
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        host: Any = ray.remote(_ReplayHost)
        self.actor = host.options(num_cpus=0, max_restarts=0, scheduling_strategy=here).remote(arguments)

    def __len__(self) -> int:
        return int(_get(self.actor.size.remote())[0])

    @property
    def num_steps(self) -> int:
        """Steps in the replay."""
        return int(_get(self.actor.size.remote())[1])

    @property
    def counts(self) -> ReplayCounts:
        """What came in and what left."""
        counts: ReplayCounts = self._ask("counts")
        return counts

    @property
    def store(self) -> TrajectoryStore:
        """A copy of the content."""
        store: TrajectoryStore = self._ask("store")
        return store

    def fill(self, store: TrajectoryStore) -> None:
        """Take in the best logged episodes; see `TrajectoryReplay.fill`."""
        _get(self.actor.fill.remote(SharedStore.publish(store)))

    def add(self, episodes: Sequence[Trajectory], asked: Sequence[float] | None = None) -> None:
        """Take in finished episodes; see `TrajectoryReplay.add`."""
        self._ask("add", episodes, asked)

    def episode_returns(self) -> Array:
        """Return the raw returns of the episodes; see `TrajectoryReplay.episode_returns`."""
        returns: Array = self._ask("episode_returns")
        return returns

    def numbers(self) -> Array:
        """Return the serial numbers of the episodes; see `TrajectoryReplay.numbers`."""
        numbers: Array = self._ask("numbers")
        return numbers

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that `restore` needs."""
        state: dict[str, Any] = self._ask("state")
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Replace the content; see `TrajectoryReplay.restore`."""
        self._ask("restore", state)

    def save(self, file: Path) -> None:
        """Write the content to a file on this node; see `TrajectoryReplay.save`."""
        self._ask("save", file.resolve())

    def load(self, file: Path) -> None:
        """Read the content from a file on this node; see `TrajectoryReplay.load`."""
        self._ask("load", file.resolve())

    def stop(self) -> None:
        """End the actor."""
        ray.kill(self.actor)

    def _ask(self, name: str, *arguments: Any) -> Any:
        return _get(self.actor.ask.remote(name, *arguments))


@dataclass(frozen=True)
class ReplayIterator:
    """Draws from a shared replay, with requests on their way while batches are used.

    Attributes:
        actor: of the replay.
        sampling: how.
        ahead: ask for batches past the ones that are wanted now, too. The replay must be one whose content may change
            between the drawing and the use of a batch (asynchronous collection).
    """

    actor: Any
    sampling: Sampling
    ahead: bool = False

    def batches(self, *, rank: int, first_step: int, count: int) -> Iterator[Window[Array]]:
        """Yield the batches of gradient steps `first_step` to `first_step + count - 1`."""
        requests = _requests(self.actor, self.sampling, rank) if self.ahead else _Requests(self)
        end = None if self.ahead else first_step + count
        for step in range(first_step, first_step + count):
            yield requests.batch(rank, step, end)


class _Requests:
    """Batches that are there, and requests for those that follow."""

    def __init__(self, source: ReplayIterator) -> None:
        self._source = source
        self._waiting: deque[Any] = deque()
        self._there: deque[Window[Array]] = deque()
        self._next = self._asked = -1  # gradient steps of the next batch to hand out, and to ask for

    def batch(self, rank: int, step: int, end: int | None) -> Window[Array]:
        """Return the batch of a gradient step; asks for nothing from step `end` on."""
        if step != self._next:
            self._waiting.clear()
            self._there.clear()
            self._next = self._asked = step
        while len(self._waiting) < _REQUESTS_AHEAD and (end is None or self._asked < end):
            count = _BATCHES_PER_REQUEST if end is None else min(_BATCHES_PER_REQUEST, end - self._asked)
            request = self._source.actor.sample.remote(self._source.sampling, rank, self._asked, count)
            self._waiting.append(request)
            self._asked += count
        if not self._there:
            self._there.extend(_get(self._waiting.popleft()))
        self._next += 1
        return _writable(self._there.popleft())


@lru_cache(maxsize=2)
def _requests(actor: Any, sampling: Sampling, rank: int) -> _Requests:
    """Return the requests of this process, which outlive one call of its learner."""
    return _Requests(ReplayIterator(actor, sampling))


def new_replay(
    config: OnlineConfig, info: DatasetInfo, normalizer: Normalizer
) -> TrajectoryReplay | SharedReplay:
    """Return an empty replay: a shared one where runners or learners are in other processes."""
    gib = config.replay_memory_gib
    arguments = {
        "info": info,
        "normalizer": normalizer,
        "capacity": config.replay_capacity_trajectories,
        "capacity_steps": config.replay_capacity_steps,
        "memory_bytes": None if gib is None else int(gib * 2**30),
    }
    shared = config.num_env_runners > 0 or config.num_learners > 0
    return SharedReplay(arguments) if shared else TrajectoryReplay(**arguments)


def episode_targets(
    config: OnlineConfig, replay: TrajectoryReplay | SharedReplay, logged: TrajectoryStore
) -> Callable[[int], float]:
    """Return what gives each episode of a round, by its number, the raw return that it is asked for.

    Args:
        config: says which law.
        replay: as it is before the round.
        logged: what the law knows while the replay is empty.
    """
    exploration = config.exploration
    if exploration is None:
        constant = config.rollout_target()
        return lambda episode: constant
    returns = replay.episode_returns() if len(replay) else logged.episode_returns
    seed = config.seed or 0
    return lambda episode: exploration.target(returns, numpy_generator(seed, "exploration-target", episode))


def sources(
    replay: TrajectoryReplay | SharedReplay, sampling: Sampling, num_learners: int, *, ahead: bool
) -> list[BatchSource]:
    """Return one source of batches per learner.

    Args:
        replay: what to draw from; learners in other processes need a shared one.
        sampling: how.
        num_learners: learners in other processes; 0 for the one in this process.
        ahead: see `ReplayIterator`.
    """
    if isinstance(replay, SharedReplay):
        return [ReplayIterator(replay.actor, sampling, ahead)] * max(1, num_learners)
    assert num_learners == 0
    return [StoreIterator(replay.store, sampling)]


def _writable(window: Window[Array]) -> Window[Array]:
    """Return a copy of a window that came through the object store, whose arrays are read-only."""
    copies = {f.name: getattr(window, f.name) for f in fields(window)}
    following = copies.pop("next")
    arrays = {name: np.array(array) for name, array in copies.items() if array is not None}
    return replace(window, **arrays, next=None if following is None else _writable(following))


def _get(reference: Any) -> Any:
    """Return a result of the actor, or raise what went wrong there as it was raised."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except RayError as error:
        raise UserError(
            f"the replay's process died, or what it sent was lost ({type(error).__name__}), and with it what was "
            "collected since the last checkpoint; that checkpoint is whole: continue from it with --resume (if memory "
            "ran out, lower online.replay_memory_gib first)"
        ) from error
