"""Context windows: the one way in which steps become model inputs, offline and from replay.

A window takes at most K steps, never crosses the end of its episode, and is padded on the left. Episodes are
drawn in proportion to their length, or by a law of their own (`rayrl_dt.data.balance`). Where a window starts is one
of two laws:

- "any": uniformly at any step of the episode (Decision Transformer), so contexts of every length from 1 to K
  occur as whole windows, as they do in a rollout;
- "full": uniformly where the window is as long as it can be, K steps or the whole episode (Reinformer). With K
  at least the episode's length every window is the whole episode, which is what memory tasks want.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.types import Window

__all__ = ["WINDOW_STARTS", "gather", "sample", "stacks"]

WINDOW_STARTS = ("any", "full")

Array = np.ndarray[Any, Any]


def sample(
    store: TrajectoryStore,
    rng: np.random.Generator,
    batch_size: int,
    context_length: int,
    *,
    starts: str = "any",
    law: Array | None = None,
    successors: bool = False,
    frame_stack: int | None = None,
    episode_returns: bool = False,
    discounted: Array | None = None,
) -> Window[Array]:
    """Draw `batch_size` windows.

    Args:
        store: the trajectories.
        rng: generator; equal generators give equal windows.
        batch_size: B.
        context_length: K.
        starts: "any" or "full"; see above.
        law: `(E,)` cumulative probabilities of the episodes; None for proportional to their length.
        successors: also return rewards, terminal flags and the window shifted by one step.
        frame_stack: as for `gather`.
        episode_returns: also return those of the windows' episodes.
        discounted: `(N,)` discounted returns of the store's steps, to be returned with successors; None for none.
    """
    if law is None:
        episodes, offsets = store.locate(rng.integers(store.num_steps, size=batch_size))
    else:
        episodes = law.searchsorted(rng.random(batch_size), side="right")
        offsets = rng.integers(store.lengths[episodes])
    if starts == "full":
        last = np.maximum(store.lengths[episodes] - context_length, 0)
        offsets = rng.integers(last + 1)
    window = gather(
        store,
        episodes,
        offsets,
        context_length,
        successors=successors,
        frame_stack=frame_stack,
        discounted=discounted,
    )
    if not episode_returns:
        return window
    returns = store.episode_returns[episodes].astype(np.float32)
    return replace(window, episode_returns=np.repeat(returns[:, None], context_length, axis=1))


def gather(
    store: TrajectoryStore,
    episodes: Array,
    offsets: Array,
    context_length: int,
    *,
    successors: bool = False,
    frame_stack: int | None = None,
    discounted: Array | None = None,
) -> Window[Array]:
    """Cut the windows that start at step `offsets[i]` of episode `episodes[i]`.

    Args:
        store: the trajectories.
        episodes: `(B,)` episode numbers.
        offsets: `(B,)` first step within the episode, from 0 to its length - 1.
        context_length: K.
        successors: as for `sample`.
        frame_stack: S, images of which the observation of a step is made, its own and those before it; zeros where
            there is none in the episode. The stacks are views that share their images. Those of padding may hold
            images of steps before the window, which the first stacks of the window need. None for no stacks.
        discounted: as for `sample`.
    """
    remaining = store.lengths.take(episodes) - offsets
    real = np.minimum(remaining, context_length)
    timesteps = np.arange(-context_length, 0) + (offsets + real)[:, None]
    mask = timesteps >= offsets[:, None]
    index = timesteps + store.starts.take(episodes)[:, None]
    padding = (~mask).ravel().nonzero()[0]

    def blank(values: Array) -> Array:
        values.reshape(-1, *values.shape[2:])[padding] = 0
        return values

    def cut(flat: Array, where: Array) -> Array:
        # Padding may point before or behind the arrays, hence "clip", which is also the fastest mode.
        values: Array = flat.take(where, axis=0, mode="clip")
        return blank(values)

    if frame_stack is None:
        observations = cut(store.observations, index)
    else:
        # One step more than the window, for the stacks after each action.
        earlier = np.arange(1 - frame_stack, context_length + 1) + (offsets + real - context_length)[:, None]
        frames = store.observations.take(earlier + store.starts.take(episodes)[:, None], axis=0, mode="clip")
        frames[earlier < 0] = 0
        observations = stacks(frames[:, :-1], frame_stack)
    window: Window[Array] = Window(
        returns_to_go=cut(store.returns_to_go, index)[..., None],
        observations=observations,
        actions=cut(store.actions, index),
        timesteps=blank(timesteps),
        mask=mask,
    )
    if not successors:
        return window

    # Only the last slot can hold the last step of an episode; its successor is not in the flat arrays.
    ends = np.flatnonzero(remaining == real)
    ended = episodes[ends]
    terminated = np.zeros_like(mask)
    terminated[ends, -1] = store.terminated[ended]
    if frame_stack is None:
        next_observations = cut(store.observations, index + 1)
        next_observations[ends, -1] = store.final_observations[ended]
    else:
        frames[ends, -1] = store.final_observations[ended]
        next_observations = stacks(frames[:, 1:], frame_stack)
    next_returns = cut(store.returns_to_go, index + 1)
    next_returns[ends, -1] = 0
    next_actions = np.zeros_like(window.actions)
    next_actions[:, :-1] = window.actions[:, 1:]
    return replace(
        window,
        rewards=cut(store.rewards, index),
        terminated=terminated,
        discounted_returns=None if discounted is None else cut(discounted, index),
        next=Window(
            returns_to_go=next_returns[..., None],
            observations=next_observations,
            actions=blank(next_actions),
            timesteps=blank(timesteps + 1),
            mask=mask,
        ),
    )


def stacks(frames: Array, count: int) -> Array:
    """Return views `(B, K, S, H, W)` of S consecutive ones of the images `(B, K + S - 1, H, W)`, oldest first."""
    batch, steps, *shape = frames.shape
    over_batch, over_steps, *rest = frames.strides
    view: Array = np.lib.stride_tricks.as_strided(
        frames, (batch, steps - count + 1, count, *shape), (over_batch, over_steps, over_steps, *rest)
    )
    return view
