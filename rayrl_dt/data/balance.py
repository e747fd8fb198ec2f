"""Which episodes are drawn more often than their length says, so that rare returns are learned too.

Logged data is thick where the behavior was at home and thin elsewhere: most windows of a replay buffer come from
poor episodes, and a policy asked for a return in between has seen few examples of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayrl_dt.data.store import TrajectoryStore

__all__ = ["BINS", "episode_law"]

BINS = 20

Array = np.ndarray[Any, Any]


def episode_law(store: TrajectoryStore, balance: float) -> Array:
    """Return the `(E,)` cumulative probabilities with which episodes are drawn.

    Episode e has the weight length(e) / share(e)^balance, where share(e) is the part of all steps that lies in
    episodes of about the same return (one of `BINS` equal bins of the range of returns).

    Args:
        store: the trajectories.
        balance: 0 draws in proportion to length, as Decision Transformer does; 1 spreads the steps evenly over the
            returns that occur; in between, in between.
    """
    lengths, returns = store.lengths.astype(np.float64), store.episode_returns
    edges = np.linspace(returns.min(), returns.max(), BINS + 1)
    bins = np.clip(np.digitize(returns, edges[1:-1]), 0, BINS - 1)
    share = np.bincount(bins, weights=lengths, minlength=BINS) / lengths.sum()
    law = np.cumsum(lengths / share[bins] ** balance)
    cumulative: Array = law / law[-1]
    return cumulative
