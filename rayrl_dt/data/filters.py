"""Views of a store that hold some of its episodes.

The statistics stay those of the whole data set, as in %BC (Decision Transformer), where the other episodes are known
and not imitated. Only `below_return` pretends that they do not exist.
"""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from rayrl_dt.data.store import OwnSteps, TrajectoryStore, fit_normalizer
from rayrl_dt.errors import UserError
from rayrl_dt.seeding import numpy_generator

__all__ = ["below_return", "split", "top_percent"]


def top_percent(store: TrajectoryStore, percent: float) -> TrajectoryStore:
    """Return a view of the episodes with the highest returns (%BC of Decision Transformer).

    The best episode is always in. The next best follow as long as all of them together hold at most
    `percent` % of the steps; the first one that does not fit ends the selection.

    Args:
        store: the trajectories.
        percent: of the steps, above 0 and up to 100; 100 keeps everything.

    Raises:
        UserError: `percent` is out of range.
    """
    if not _is_number(percent) or not 0 < percent <= 100:
        raise UserError(f"top_percent is {percent!r}; it must be a number above 0 and up to 100")
    if percent == 100:
        return store
    best_first = np.argsort(-store.episode_returns, kind="stable")
    steps = np.cumsum(store.lengths[best_first])
    # Both sides times 100, so that whole percentages are compared exactly.
    fitting = int(np.count_nonzero(steps * 100 <= percent * store.num_steps))
    return store.select(np.sort(best_first[: max(1, fitting)]))


def split(store: TrajectoryStore, fraction: float, seed: int) -> tuple[TrajectoryStore, TrajectoryStore]:
    """Split the episodes at random into two views.

    Args:
        store: the trajectories, at least two.
        fraction: of the episodes that go into the first view, between 0 and 1; each view gets one at least.
        seed: equal seeds give equal splits.

    Raises:
        UserError: `fraction` is out of range, or there is only one episode.
    """
    if not _is_number(fraction) or not 0 < fraction < 1:
        raise UserError(f"the fraction is {fraction!r}; it must be a number above 0 and below 1")
    if store.num_episodes < 2:
        raise UserError(f"{store.info.source} has one episode, which cannot be split; use all of it")
    order = numpy_generator(seed, "data.split").permutation(store.num_episodes)
    count = min(max(1, round(fraction * store.num_episodes)), store.num_episodes - 1)
    return store.select(np.sort(order[:count])), store.select(np.sort(order[count:]))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def below_return(store: TrajectoryStore, limit: float) -> TrajectoryStore:
    """Return a view of the episodes whose raw return lies below `limit`: poor data to finetune from.

    Its statistics are those of these episodes alone, as if the others had never been recorded.

    Raises:
        UserError: there is none.
    """
    chosen = np.flatnonzero(store.episode_returns < limit)
    if len(chosen) == 0:
        lowest = float(store.episode_returns.min())
        raise UserError(f"no episode of {store.info.source} is below {limit:g}; the lowest has {lowest:g}")
    view = store.select(chosen)
    return replace(view, normalizer=fit_normalizer(OwnSteps(view, "observations")))
