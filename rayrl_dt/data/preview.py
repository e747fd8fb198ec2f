"""What is in a data set: numbers and one picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rayrl_dt.data import scores
from rayrl_dt.data.store import TrajectoryStore

__all__ = ["plot", "statistics"]

Array = np.ndarray[Any, Any]
_CHUNK = 262_144
_BINS = 40
_PERCENTILES = (5, 25, 50, 75, 95)
# An action counts as at a bound within this fraction of the range: squashed policies never quite reach it.
_AT_BOUND = 1e-3
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK, _FAINT, _GRID = "#24292f", "#6e7781", "#e6e8eb"


def statistics(store: TrajectoryStore) -> dict[str, Any]:
    """Describes the episodes of a store in JSON-ready numbers.

    Returns:
        `source, environment, episodes, steps, delayed_reward, terminated_fraction`; `returns` (raw) and
        `lengths`, each with `mean, std, min, max, p5, p25, p50, p75, p95`; `observations` (`shape, dtype`);
        `actions`: `kind` "continuous" (per dimension `low, high, min, max, mean, std, at_bounds`, and
        `at_bounds` over all numbers) or "discrete" (`counts` by action, as text); `reference` (`minimum,
        maximum, environment, source`, or None) with `reference_note`.
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
    }


def plot(store: TrajectoryStore, path: Path) -> Path:
    """Writes a PNG with histograms of the returns, the episode lengths and the actions.

    Args:
        store: the trajectories.
        path: of the picture; its folder is made if need be.
    """
    figure = Figure(figsize=(13.5, 4.2), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    returns_axes, lengths_axes, actions_axes = figure.subplots(1, 3)
    _draw_spread(returns_axes, store.episode_returns, _COLOURS[0])
    _label(returns_axes, "Episode returns", "return (raw)", "episodes")
    _draw_spread(lengths_axes, store.lengths, _COLOURS[2])
    _label(lengths_axes, "Episode lengths", "steps", "episodes")
    if isinstance(store.info.action_space, gym.spaces.Discrete):
        _draw_counts(actions_axes, store)
    elif store.actions.shape[1] <= len(_COLOURS):
        _draw_lines(actions_axes, store)
    else:
        _draw_heat(figure, actions_axes, store)
    figure.suptitle(
        f"{store.info.source}  ·  {store.num_episodes:,} episodes, {store.num_steps:,} steps",
        fontsize=12,
        color=_INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _action_statistics(store: TrajectoryStore) -> dict[str, Any]:
    space = store.info.action_space
    if isinstance(space, gym.spaces.Discrete):
        actions, counts = _counts(store)
        counted = zip(actions.tolist(), counts.tolist(), strict=True)
        return {"kind": "discrete", "counts": {str(action): count for action, count in counted}}
    low, high = _bounds(store)
    margin = _AT_BOUND * (high - low)
    dimensions = store.actions.shape[1]
    total, squares = np.zeros(dimensions), np.zeros(dimensions)
    at_bounds = np.zeros(dimensions, np.int64)
    smallest, largest = np.full(dimensions, np.inf), np.full(dimensions, -np.inf)
    for actions in _action_chunks(store):
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


def _action_chunks(store: TrajectoryStore) -> Iterator[Array]:
    """The actions of the store's own episodes, which in a view are not all of the array."""
    for begin in range(0, store.num_steps, _CHUNK):
        episodes, offsets = store.locate(np.arange(begin, min(begin + _CHUNK, store.num_steps)))
        yield store.actions[store.starts[episodes] + offsets]


def _bounds(store: TrajectoryStore) -> tuple[Array, Array]:
    """The space's bounds per action dimension, infinite where it has none."""
    space = store.info.action_space
    assert isinstance(space, gym.spaces.Box)
    return space.low.astype(np.float64), space.high.astype(np.float64)


def _counts(store: TrajectoryStore) -> tuple[Array, Array]:
    """The discrete actions, and how often each was taken."""
    space = store.info.action_space
    assert isinstance(space, gym.spaces.Discrete)
    first, size = int(space.start), int(space.n)
    counts = np.zeros(size, np.int64)
    for actions in _action_chunks(store):
        counts += np.bincount(actions - first, minlength=size)
    return first + np.arange(size), counts


def _densities(store: TrajectoryStore) -> tuple[Array, Array]:
    """Histogram edges common to all dimensions, and the fraction of steps in each bin `(A, bins)`."""
    low, high = _bounds(store)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        low = np.min([chunk.min() for chunk in _action_chunks(store)], keepdims=True)
        high = np.max([chunk.max() for chunk in _action_chunks(store)], keepdims=True)
    edges = np.linspace(low.min(), max(high.max(), low.min() + 1e-6), _BINS + 1)
    counts = np.zeros((store.actions.shape[1], _BINS))
    for actions in _action_chunks(store):
        clipped = np.clip(actions, edges[0], edges[-1])
        counts += [np.histogram(column, edges)[0] for column in clipped.T]
    return edges, counts / store.num_steps


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _draw_spread(axes: Any, values: Array, colour: str) -> None:
    axes.hist(values, bins=_BINS, color=colour, alpha=0.85)
    for q, dash in ((5, ":"), (50, "-"), (95, ":")):
        value = float(np.percentile(values, q))
        axes.axvline(value, color=_INK, lw=1.1, ls=dash, label=f"p{q} = {value:,.4g}")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK)


def _draw_counts(axes: Any, store: TrajectoryStore) -> None:
    axes.bar(*_counts(store), color=_COLOURS[1], alpha=0.85)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _label(axes, "Actions", "action", "steps")


def _draw_lines(axes: Any, store: TrajectoryStore) -> None:
    edges, fractions = _densities(store)
    for number, row in enumerate(fractions):
        colour = _COLOURS[number]
        axes.stairs(100 * row, edges, color=colour, lw=1.6, label=f"dimension {number}")
        axes.stairs(100 * row, edges, color=colour, alpha=0.12, fill=True)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
    _label(axes, "Actions", "action", "% of steps")


def _draw_heat(figure: Figure, axes: Any, store: TrajectoryStore) -> None:
    edges, fractions = _densities(store)
    rows = np.arange(len(fractions) + 1) - 0.5
    image = axes.pcolormesh(edges, rows, 100 * fractions, cmap="viridis")
    figure.colorbar(image, ax=axes, label="% of steps")
    _label(axes, "Actions", "action", "dimension")
    axes.grid(False)


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK, fontweight="bold")
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_FAINT, labelsize=9)
    axes.grid(axis="y", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
