"""What is in a data set, in numbers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data import scores
from rayrl_dt.data.info import NOTES
from rayrl_dt.data.scaling import action_chunks, scale_notes
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs.actions import whole_range

__all__ = ["action_counts", "statistics"]

Array = np.ndarray[Any, Any]
_PERCENTILES = (5, 25, 50, 75, 95)
# An action counts as at a bound within this fraction of the range: squashed policies never quite reach it.
_AT_BOUND = 1e-3


def statistics(store: TrajectoryStore) -> dict[str, Any]:
    """Describe the episodes of a store in JSON-ready numbers.

    Returns:
        `source, environment, episodes, steps, delayed_reward, terminated_fraction`; `returns` (raw) and
        `lengths`, each with `mean, std, min, max, p5, p25, p50, p75, p95`; `observations` (`shape, dtype`);
        `actions`: `kind` "continuous" (per dimension `low, high, min, max, mean, std, at_bounds`, and
        `at_bounds` over all numbers), "discrete" (`counts` by action, as text) or "multi-discrete" (`choices`, a list
        of such counts); `reference` (`minimum,
        maximum, environment, source`, or None) with `reference_note`; `notes`: sentences about what was left out or
        clipped, and what will be scaled otherwise than it says.
    """
    info = store.info
    environment = info.metadata.get("environment") if info.env_spec is None else info.env_spec.id
    reference, note = scores.reference_for(info, environment)
    return {
        "source": info.source,
        "environment": environment,
        "episodes": store.num_episodes,
        "steps": store.num_steps,
        "delayed_reward": store.delayed_reward,
        "terminated_fraction": float(store.terminated.mean()),
        "returns": _summary(store.episode_returns),
        "lengths": _summary(store.lengths),
        "observations": {
            "shape": list(store.observations.shape[1:]),
            "dtype": str(store.observations.dtype),
        },
        "actions": _action_statistics(store),
        "reference": None if reference is None else dict(vars(reference)),
        "reference_note": note,
        "notes": [*info.metadata.get(NOTES, ()), *scale_notes(store)],
    }


def _action_statistics(store: TrajectoryStore) -> dict[str, Any]:
    space = store.info.action_space
    if not isinstance(space, gym.spaces.Box):
        choices = [
            {str(action): count for action, count in zip(actions.tolist(), counts.tolist(), strict=True)}
            for actions, counts in action_counts(store)
        ]
        if isinstance(space, gym.spaces.Discrete):
            return {"kind": "discrete", "counts": choices[0]}
        return {"kind": "multi-discrete", "choices": choices}
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high)
    margin = _AT_BOUND * (np.where(bounded, high, 1) - np.where(bounded, low, 0))
    dimensions = store.actions.shape[1]
    total, squares = np.zeros(dimensions), np.zeros(dimensions)
    at_bounds = np.zeros(dimensions, np.int64)
    smallest, largest = np.full(dimensions, np.inf), np.full(dimensions, -np.inf)
    for actions in action_chunks(store):
        total += actions.sum(axis=0, dtype=np.float64)
        squares += np.square(actions, dtype=np.float64).sum(axis=0)
        smallest = np.minimum(smallest, actions.min(axis=0))
        largest = np.maximum(largest, actions.max(axis=0))
        at_bounds += ((actions <= low + margin) | (actions >= high - margin)).sum(axis=0)
    mean = total / store.num_steps
    std = np.sqrt(np.maximum(squares / store.num_steps - np.square(mean), 0))
    columns = {"low": low, "high": high, "min": smallest, "max": largest, "mean": mean, "std": std}
    columns["at_bounds"] = at_bounds / store.num_steps
    return {
        "kind": "continuous",
        "dimensions": [
            {name: _finite(values[i]) for name, values in columns.items()} for i in range(dimensions)
        ],
        "at_bounds": float(at_bounds.sum() / (store.num_steps * dimensions)),
    }


def _summary(values: Array) -> dict[str, float]:
    low, *middle, high = np.percentile(values, (0, *_PERCENTILES, 100)).tolist()
    percentiles = {f"p{q}": value for q, value in zip(_PERCENTILES, middle, strict=True)}
    return {"mean": float(values.mean()), "std": float(values.std()), "min": low, "max": high, **percentiles}


def action_counts(store: TrajectoryStore) -> list[tuple[Array, Array]]:
    """Return the discrete actions and how often each was taken, for each choice of an action."""
    allowed = whole_range(store.info.action_space)
    assert allowed is not None
    first, last = (np.atleast_1d(bound) for bound in allowed)
    counts = [np.zeros(size, np.int64) for size in last - first + 1]
    for chunk in action_chunks(store):
        for column, count in zip((chunk.reshape(len(chunk), -1) - first).T, counts, strict=True):
            count += np.bincount(column, minlength=len(count))
    return [(begin + np.arange(len(count)), count) for begin, count in zip(first, counts, strict=True)]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
