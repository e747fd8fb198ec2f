"""Acting along a whole data set with Ray Data: one table of what it would do at each step."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrl_dt.algorithms.placement import CPUS_REMEDY, check_room
from rayrl_dt.algorithms.session import start_ray
from rayrl_dt.data import sources
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError, number, whole
from rayrl_dt.evaluation.targets import policy_targets
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import run_data
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.task import check_task
from rayrl_dt.serving.along import Along, act_along

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ACHIEVED", "Agreement", "write_actions"]

Array = np.ndarray[Any, Any]

_LOG = logging.getLogger(__name__)
ACHIEVED = "achieved"
"""Asks each episode for the return that it had."""
_EPISODES_AT_ONCE = 32


@dataclass
class Agreement:
    """How a policy's actions compare with those of the data, for one target.

    Attributes:
        target: raw return asked for; None where each episode was asked for its own, or the policy takes none.
        steps: how many were compared.
        difference: mean absolute difference, as a share of each action's range; of choices the share that differs.
    """

    target: float | None
    steps: int = 0
    difference: float = 0.0

    def add(self, differences: Array) -> None:
        """Count further steps, `(n,)` differences."""
        self.steps += len(differences)
        self.difference += (float(differences.mean()) - self.difference) * len(differences) / self.steps


def write_actions(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    targets: str = "dataset:3",
    dataset: str | None = None,
    workers: int = 1,
    cpus: float = 1.0,
    context_length: int | None = None,
    guidance: float | None = None,
    address: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Agreement]:
    """Write what a policy would do at each logged step, for each target, to a Parquet file.

    Its columns are episode, step, target_return, return_to_go (raw), action and logged_action (in units of the
    environment; lists, or whole numbers for Discrete actions). The rows go by target, episode and step.

    Args:
        path: of a run, checkpoint or bundle; on storage that the nodes of a cluster share.
        out: file to write, ending in .parquet; it appears whole or not at all, and replaces an older one.
        targets: as for `parse_targets`, or "achieved" for each episode's own return.
        dataset: source id of other data of the same task; None for those that the policy was trained on.
        workers: processes that act at once, at most; each holds the policy and maps the data.
        cpus: that each of them takes.
        context_length: steps to act on; None for the policy's own choice.
        guidance: how strongly the policy follows its returns; None for its own choice.
        address: of a Ray cluster; None for a Ray of its own, or the one that this process has joined.
        progress: called with (steps done, steps in all).

    Returns:
        What came out for each target.

    Raises:
        UserError: there is no policy at `path`, it cannot act so, the data are of another task or not here, or Ray has
            no room.
    """
    file = Path(out)
    if file.suffix != ".parquet" or file.is_dir():
        raise UserError(f"--out {file} must be a file that ends in .parquet")
    workers = whole("--workers", workers, least=1)
    cpus = number("--cpus", cpus, above=0.0)
    bundle = Bundle.open(path)
    spec = bundle.spec.acting(context_length=context_length, action_selection=None, guidance=guidance)
    store = _data(bundle, dataset)
    asked = _asked(spec, store, targets)

    import ray

    begun = not ray.is_initialized()
    start_ray(address=address)
    try:
        check_room([{"CPU": cpus}], what="a worker", remedy=CPUS_REMEDY)
        given = _Given(str(Path(path).resolve()), dataset, context_length, guidance, call=uuid.uuid4().hex)
        tables = _answers(_parts(store, asked), given, workers, cpus)
        return _write(tables, spec, store, asked, file, progress)
    finally:
        if begun:
            ray.shutdown()


def _data(bundle: Bundle, dataset: str | None) -> TrajectoryStore:
    """Load the data to act along; they must be of the policy's task."""
    store = run_data(bundle) if dataset is None else sources.load(dataset)
    check_task(bundle.spec, store.info)
    return store


def _asked(spec: PolicySpec, store: TrajectoryStore, targets: str) -> tuple[float | None, ...]:
    """Return the raw returns to ask for; None for each episode's own, or for a policy that takes none."""
    if targets == ACHIEVED or spec.model.target_rule == "predicted":
        return (None,)
    found = policy_targets(spec, targets, store.episode_returns)
    for warning in found.warnings:
        _LOG.warning(warning)
    return found.targets


def _parts(store: TrajectoryStore, asked: Sequence[float | None]) -> list[dict[str, Array]]:
    """Return episodes and targets of each piece of work, in the order of the table."""
    found = []
    for target in asked:
        for first in range(0, store.num_episodes, _EPISODES_AT_ONCE):
            episodes = np.arange(first, min(first + _EPISODES_AT_ONCE, store.num_episodes))
            own = store.episode_returns[episodes].astype(np.float64)
            found.append(
                {"episodes": episodes, "targets": own if target is None else np.full(len(episodes), target)}
            )
    return found


@dataclass(frozen=True)
class _Given:
    """What a process needs to act.

    Attributes:
        path: of the policy.
        dataset: as for `write_actions`.
        context_length: as for `act_along`.
        guidance: as for `act_along`.
        call: tells one call of `write_actions` from the next; the policy at `path` may be another by then.
    """

    path: str
    dataset: str | None
    context_length: int | None
    guidance: float | None
    call: str


@lru_cache(maxsize=1)
def _held(given: _Given) -> tuple[SequenceModel, TrajectoryStore]:
    """Load policy and data, once in a process."""
    bundle = Bundle.open(given.path)
    return bundle.model, _data(bundle, given.dataset)


def _act(part: dict[str, Array], given: _Given) -> pa.Table:
    """Act along the episodes of one piece of work."""
    along = act_along(
        *_held(given),
        part["episodes"][0],
        part["targets"][0],
        context_length=given.context_length,
        guidance=given.guidance,
    )
    return _table(along)


def _table(along: Along) -> pa.Table:
    import pyarrow as pa

    def column(values: Array) -> pa.Array:
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    return pa.table(
        {
            "episode": column(along.episodes),
            "step": column(along.steps),
            "target_return": column(along.targets),
            "return_to_go": column(along.returns_to_go),
            "action": column(along.actions),
            "logged_action": column(along.logged),
        }
    )


def _answers(parts: list[dict[str, Array]], given: _Given, workers: int, cpus: float) -> Iterator[pa.Table]:
    """Yield the table of each part, in their order.

    Raises:
        UserError: a worker failed.
    """
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context):
        # Tasks and not actors: a lost one is done again elsewhere, and the processes that do them keep what they hold.
        answers = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
            _act, fn_kwargs={"given": given}, batch_size=1, concurrency=workers, num_cpus=cpus
        )
        try:
            yield from answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        except RayError as error:
            # Ray Data keeps of the cause its traceback alone.
            cause = str(error).partition("The above exception")[0].strip().splitlines()[-1]
            raise UserError(f"a worker failed ({cause})") from error


def _write(
    tables: Iterator[pa.Table],
    spec: PolicySpec,
    store: TrajectoryStore,
    asked: Sequence[float | None],
    file: Path,
    progress: Callable[[int, int], None] | None,
) -> list[Agreement]:
    """Write the tables one below the other, and compare as they come."""
    import pyarrow.parquet as pq

    found, done = [Agreement(target) for target in asked], 0
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}-{os.getpid()}")
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(aside, table.schema)
            writer.write_table(table)
            differences = _differences(spec, table)
            place = (done + np.arange(table.num_rows)) // store.num_steps  # (n,), which target a row is of
            for target in np.unique(place):
                found[target].add(differences[place == target])
            done += table.num_rows
            if progress is not None:
                progress(done, len(asked) * store.num_steps)
        if writer is not None:
            writer.close()
            aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return found


def _differences(spec: PolicySpec, table: pa.Table) -> Array:
    """Return how far action and logged action are apart at each step, `(n,)`, from 0 to 1."""
    ours, theirs = (np.array(table[name].to_pylist()) for name in ("action", "logged_action"))
    ours, theirs = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)  # (n, A)
    if not spec.head.continuous:
        share: Array = (ours != theirs).mean(axis=1)
        return share
    span = np.array(spec.action_high) - np.array(spec.action_low)
    mean: Array = (np.abs(ours - theirs) / np.where(span > 0, span, 1.0)).mean(axis=1)
    return mean
