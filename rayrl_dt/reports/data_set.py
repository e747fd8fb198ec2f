"""What is in a data set, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

from rayrl_dt.data.preview import action_counts
from rayrl_dt.data.scaling import action_chunks, action_range
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.reports.style import COLORS, INK, canvas, save_png, style_axes

__all__ = ["plot"]

Array = np.ndarray[Any, Any]

_BINS = 40


def plot(store: TrajectoryStore, path: Path) -> Path:
    """Write a PNG with histograms of the returns, the episode lengths and the actions; make its folder if need be."""
    figure, (returns_axes, lengths_axes, actions_axes) = canvas(1, 3, (13.5, 4.2))
    _draw_spread(returns_axes, store.episode_returns, COLORS[0])
    style_axes(returns_axes, "Episode returns", "return (raw)", "episodes")
    _draw_spread(lengths_axes, store.lengths, COLORS[2])
    style_axes(lengths_axes, "Episode lengths", "steps", "episodes")
    if not isinstance(store.info.action_space, gym.spaces.Box):
        _draw_counts(actions_axes, store)
    elif store.actions.shape[1] <= len(COLORS):
        _draw_lines(actions_axes, store)
    else:
        _draw_heat(figure, actions_axes, store)
    figure.suptitle(
        f"{store.info.source}  ·  {store.num_episodes:,} episodes, {store.num_steps:,} steps",
        fontsize=12,
        color=INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, path)
    return path


def _densities(store: TrajectoryStore) -> tuple[Array, Array]:
    """Histogram edges common to all dimensions, and the fraction of steps in each bin `(A, bins)`."""
    low, high = action_range(store)
    edges = np.linspace(low.min(), max(high.max(), low.min() + 1e-6), _BINS + 1)
    counts = np.zeros((store.actions.shape[1], _BINS))
    for actions in action_chunks(store):
        clipped = np.clip(actions, edges[0], edges[-1])
        counts += [np.histogram(column, edges)[0] for column in clipped.T]
    return edges, counts / store.num_steps


def _draw_spread(axes: Any, values: Array, color: str) -> None:
    axes.hist(values, bins=_BINS, color=color, alpha=0.85)
    for q, dash in ((5, ":"), (50, "-"), (95, ":")):
        value = float(np.percentile(values, q))
        axes.axvline(value, color=INK, lw=1.1, ls=dash, label=f"p{q} = {value:,.4g}")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _draw_counts(axes: Any, store: TrajectoryStore) -> None:
    choices = action_counts(store)
    width = 0.8 / len(choices)
    for number, (actions, counts) in enumerate(choices):
        places = actions + (number - (len(choices) - 1) / 2) * width
        color = COLORS[(number + 1) % len(COLORS)]
        axes.bar(places, counts, width, color=color, alpha=0.85, label=f"choice {number}")
    if len(choices) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    style_axes(axes, "Actions", "action", "steps")


def _draw_lines(axes: Any, store: TrajectoryStore) -> None:
    edges, fractions = _densities(store)
    for number, row in enumerate(fractions):
        color = COLORS[number]
        axes.stairs(100 * row, edges, color=color, lw=1.6, label=f"dimension {number}")
        axes.stairs(100 * row, edges, color=color, alpha=0.12, fill=True)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    style_axes(axes, "Actions", "action", "% of steps")


def _draw_heat(figure: Figure, axes: Any, store: TrajectoryStore) -> None:
    edges, fractions = _densities(store)
    rows = np.arange(len(fractions) + 1) - 0.5
    image = axes.pcolormesh(edges, rows, 100 * fractions, cmap="viridis")
    figure.colorbar(image, ax=axes, label="% of steps")
    style_axes(axes, "Actions", "action", "dimension")
    axes.grid(False)
