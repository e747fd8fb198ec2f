"""From a source id to a trajectory store.

    minari:mujoco/hopper/medium-v0     a Minari data set, local or downloaded (the prefix may be left out)
    d4rl:FILE.hdf5                     a file as D4RL published it
    recipe:NAME                        a data set made on this machine, at first use
    dqn-replay:FOLDER                  shards of Atari's DQN replay, 1% of them (FOLDER#steps=500000,seed=123)
    store:FOLDER                       a store saved with `TrajectoryStore.save`

Data sets are laid out as flat arrays once, in a cache folder, and mapped from there: every run, Tune trial
and learner of a node shares one copy in the page cache, and a data set may be larger than memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rayrl_dt.data import filters
from rayrl_dt.data.info import NOTES, DatasetInfo
from rayrl_dt.data.readers import d4rl, dqn_replay, minari_io
from rayrl_dt.data.staging import sweep
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.data.store_files import FORMAT, HEADER
from rayrl_dt.data.writer import StoreWriter
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.types import Trajectory

__all__ = ["cache_root", "load", "locate"]

_LOG = logging.getLogger(__name__)
# Raised whenever a reader gives other trajectories for the same file.
_READERS = 3
_UNUSED_AFTER_S = 7 * 24 * 3600
_DIGEST = "[0-9a-f]" * 16


@dataclass(frozen=True)
class _Origin:
    """Files, how to read the trajectories in them, and which of them are read if not all."""

    files: tuple[Path, ...]
    stream: Callable[[], tuple[Iterator[Trajectory], DatasetInfo]]
    part: tuple[object, ...] = ()


def load(
    source: str, *, top_percent: float | None = None, delayed_reward: bool = False, cache: bool = True
) -> TrajectoryStore:
    """Load a source.

    Args:
        source: one of the forms above.
        top_percent: keep the best episodes that together hold this percentage of the steps.
        delayed_reward: pay each episode's whole return at its last step.
        cache: keep the flat arrays in the cache folder and map them; otherwise hold them in memory.

    Returns:
        The store; `info.source` is `source` as given.

    Raises:
        UserError: the source is malformed, missing or damaged.
    """
    kind, rest = _parse(source)
    if kind == "store":
        store = TrajectoryStore.open(Path(rest).expanduser())
    elif cache:
        store = _through_cache(source, _ORIGINS[kind](rest))
    else:
        store = _in_memory(source, _ORIGINS[kind](rest))
    metadata = store.info.metadata
    notes = [*metadata.get(NOTES, ()), *(_recipe_notes(rest, store) if kind == "recipe" else ())]
    for note in notes:
        _LOG.warning("%s: %s", source, note)
    metadata = {**metadata, NOTES: notes} if notes else metadata
    store = replace(store, info=replace(store.info, source=source, metadata=metadata))
    if top_percent is not None:
        store = filters.top_percent(store, top_percent)
    return store.with_delayed_rewards() if delayed_reward else store


def locate(source: str) -> list[Path]:
    """Return the files of a source on this machine; download and make nothing.

    Raises:
        UserError: the source is malformed, or not here.
    """
    kind, rest = _parse(source)
    if kind == "recipe":
        # Late, as in `_recipe`.
        from rayrl_dt.data import recipes

        name, kind, rest = rest, "minari", recipes.dataset_id(rest)
        if not minari_io.exists(rest):
            raise UserError(f"the data of {source} have not been made yet; type rayrl-dt data make {name}")
    rest = rest.partition("#")[0] if kind == "dqn-replay" else rest
    place = minari_io.data_folder(rest) if kind == "minari" else Path(rest).expanduser()
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    if not files:
        raise UserError(f"there is no file at {place}; copy the data there, or name another source")
    return files


def cache_root() -> Path:
    """Return the cache folder: `RAYRL_DT_CACHE`, else `~/.cache/rayrl_dt/stores`."""
    root = os.environ.get("RAYRL_DT_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "rayrl_dt" / "stores"


def _parse(source: str) -> tuple[str, str]:
    kinds = (*_ORIGINS, "store")
    kind, colon, rest = source.partition(":")
    if not colon:
        is_file = Path(source).is_file()
        if is_file:
            d4rl.refuse_others(Path(source))
        if is_file or source.endswith(d4rl.SUFFIXES):
            raise UserError(f"the source {source!r} has no prefix; write d4rl:{source} for a D4RL file")
        if (Path(source) / HEADER).is_file():
            raise UserError(f"the source {source!r} has no prefix; write store:{source} for a saved store")
        kind, rest = "minari", source
    if kind not in kinds:
        raise UserError(f"unknown prefix {kind!r} of the source {source!r}.{suggest(kind, kinds)}")
    if not rest:
        raise UserError(f"the source {source!r} names nothing; write for instance {kind}:NAME")
    return kind, rest


def _minari(dataset_id: str) -> _Origin:
    folder = minari_io.data_folder(dataset_id, download=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _Origin(tuple(files), lambda: minari_io.stream(dataset_id))


def _d4rl(path: str) -> _Origin:
    file = Path(path).expanduser()
    # A missing file is d4rl's to report.
    return _Origin((file,) if file.is_file() else (), lambda: d4rl.stream(file))


def _dqn_replay(text: str) -> _Origin:
    folder, sample = dqn_replay.Sample.parse(text)
    # A missing folder is the reader's to report.
    return _Origin(
        tuple(dqn_replay.files(folder)),
        lambda: dqn_replay.stream(folder, sample),
        (sample.steps, sample.seed),
    )


def _recipe(name: str) -> _Origin:
    # Late: recipes bring environments and, for some, training.
    from rayrl_dt.data import recipes

    return _minari(recipes.ensure(name))


def _recipe_notes(name: str, store: TrajectoryStore) -> list[str]:
    from rayrl_dt.data import recipes

    return recipes.not_its_own(name, store.info.metadata.get("seed"), store.num_episodes)


_ORIGINS: dict[str, Callable[[str], _Origin]] = {
    "minari": _minari,
    "d4rl": _d4rl,
    "recipe": _recipe,
    "dqn-replay": _dqn_replay,
}


def _through_cache(source: str, origin: _Origin) -> TrajectoryStore:
    folder, siblings = _cache_folder(origin.files, origin.part)
    if os.path.exists(folder):  # unlike Path.exists, False where access is denied
        try:
            store = TrajectoryStore.open(folder)
            _tidy(folder, siblings)
            return store
        except UserError as error:
            _LOG.warning("Rebuilding the cache of %s: %s", source, error)
            shutil.rmtree(folder, ignore_errors=True)
            if os.path.lexists(folder):
                _LOG.warning(
                    "No cache for %s: %s is another user's. The data stays in memory.", source, folder
                )
                return _in_memory(source, origin)
    trajectories, info = origin.stream()
    try:
        with StoreWriter(folder, info) as writer:
            for trajectory in trajectories:
                writer.append(trajectory)
    except OSError as error:  # readers raise UserErrors: this is the cache's own disk
        _LOG.warning("No cache for %s (%s): the data stays in memory, once per process.", source, error)
        return _in_memory(source, origin)
    _tidy(folder, siblings)
    return TrajectoryStore.open(folder)


def _tidy(folder: Path, siblings: str) -> None:
    """Mark a cache folder as used now, and delete older states of its data that nobody has used for a week.

    Another node's copy of the data may have another state, which is in use beside this one. What killed processes
    left of any data is deleted, too.
    """
    with contextlib.suppress(OSError):  # the cache may be another user's, to be read only
        os.utime(folder)
    for sibling in folder.parent.glob(siblings):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if sibling != folder and time.time() - sibling.stat().st_mtime > _UNUSED_AFTER_S:
                shutil.rmtree(sibling, ignore_errors=True)
    sweep(folder.parent, f"{_DIGEST}-{_DIGEST}")


def _in_memory(source: str, origin: _Origin) -> TrajectoryStore:
    trajectories, info = origin.stream()
    return TrajectoryStore.from_trajectories(trajectories, info)


def _cache_folder(files: Iterable[Path], part: tuple[object, ...] = ()) -> tuple[Path, str]:
    """Return the cache folder of the files as they are now, and a pattern that also matches those of older states.

    The folder's name says everything that the arrays depend on, so a folder never changes its content and
    processes that have it open are not disturbed by a newer one.
    """
    paths = [path.resolve() for path in files]
    stats = [path.stat() for path in paths]
    identity = _digest([*(str(path) for path in paths), *part])
    state = _digest([FORMAT, _READERS, *((stat.st_size, stat.st_mtime_ns) for stat in stats)])
    return cache_root() / f"{identity}-{state}", f"{identity}-*"


def _digest(values: Iterable[object]) -> str:
    return hashlib.sha256(repr(list(values)).encode()).hexdigest()[:16]
