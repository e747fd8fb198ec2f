"""Random spaces, episodes and stores for property tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.types import Trajectory

FLOATS = st.sampled_from([np.float32, np.float64])


@st.composite
def boxes(draw: st.DrawFn, *, shapes: st.SearchStrategy[tuple[int, ...]], bounded: bool) -> gym.spaces.Box:
    """Boxes of floats, whose bounds may be infinite unless `bounded`."""
    shape, dtype = draw(shapes), draw(FLOATS)
    size = int(np.prod(shape))
    low = np.array(draw(st.lists(st.integers(-64, 64), min_size=size, max_size=size)), dtype) / 8
    high = low + np.array(draw(st.lists(st.integers(1, 64), min_size=size, max_size=size)), dtype) / 8
    if not bounded and draw(st.booleans()):
        low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
    return gym.spaces.Box(low.reshape(shape).astype(dtype), high.reshape(shape).astype(dtype), dtype=dtype)


IMAGES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)).map(
    lambda shape: gym.spaces.Box(0, 255, shape, np.uint8)
)
DISCRETE = st.builds(
    lambda n, start: gym.spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)
)
VECTORS = boxes(shapes=st.tuples(st.integers(1, 4)), bounded=False)
OBSERVATIONS: st.SearchStrategy[gym.Space[Any]] = st.one_of(
    VECTORS, boxes(shapes=st.tuples(st.integers(1, 3), st.integers(1, 3)), bounded=False), IMAGES
)
ACTIONS: st.SearchStrategy[gym.Space[Any]] = st.one_of(
    boxes(shapes=st.tuples(st.integers(1, 3)), bounded=True), DISCRETE
)


@st.composite
def stores(
    draw: st.DrawFn, observations: st.SearchStrategy[gym.Space[Any]] = OBSERVATIONS
) -> TrajectoryStore:
    """Stores of a few short random episodes."""
    space, actions = draw(observations), draw(ACTIONS)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    space.seed(int(rng.integers(2**16)))
    actions.seed(int(rng.integers(2**16)))
    episodes = [
        Trajectory(
            np.stack([space.sample() for _ in range(length + 1)]),
            np.stack([actions.sample() for _ in range(length)]),
            rng.normal(size=length).astype(draw(FLOATS)),
            terminated=bool(rng.integers(2)),
        )
        for length in draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    ]
    metadata = draw(
        st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=4), max_size=2)
    )
    return TrajectoryStore.from_trajectories(episodes, DatasetInfo("test", space, actions, metadata=metadata))
