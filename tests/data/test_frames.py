"""Single images kept once, and the stacks of them that a policy sees."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation
from image_data import image_store

from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.policy.context import ContextBuffer

STACK = 4


def expected(store: TrajectoryStore, episode: int, step: int) -> np.ndarray[Any, Any]:
    """The frames t-3 to t of an episode, zeros before its first."""
    frames = store.trajectory(episode).observations
    blank = np.zeros_like(frames[0])
    return np.stack([frames[t] if t >= 0 else blank for t in range(step - STACK + 1, step + 1)])


@pytest.mark.parametrize("context_length", [1, 3, 12])
def test_stacks_never_reach_into_another_episode(context_length: int) -> None:
    store = image_store()
    cuts = [(e, o) for e in range(store.num_episodes) for o in range(int(store.lengths[e]))]
    episodes, offsets = np.array(cuts).T
    window = windows.gather(store, episodes, offsets, context_length, successors=True, frame_stack=STACK)
    assert window.next is not None
    assert window.observations.shape == (len(cuts), context_length, STACK, 40, 40)
    for row, episode in enumerate(episodes):
        for slot in np.flatnonzero(window.mask[row]):
            step = int(window.timesteps[row, slot])
            np.testing.assert_array_equal(window.observations[row, slot], expected(store, episode, step))
            np.testing.assert_array_equal(
                window.next.observations[row, slot], expected(store, episode, step + 1)
            )


def test_stacks_share_their_images() -> None:
    store = image_store()
    window = windows.gather(store, np.zeros(2, int), np.zeros(2, int), 5, frame_stack=STACK)
    assert np.shares_memory(window.observations[0, 0], window.observations[0, 1])


def test_a_store_of_images_is_as_large_as_its_images(tmp_path: Any) -> None:
    store = image_store(lengths=(300, 200))
    raw = 500 * 40 * 40
    assert raw < store.nbytes() < 1.1 * raw
    store.save(tmp_path / "store")
    opened = TrajectoryStore.open(tmp_path / "store")
    assert opened.observations.dtype == np.uint8 and not opened.observations.flags.writeable
    np.testing.assert_array_equal(opened.observations, store.observations)
    assert np.shares_memory(opened.select([1]).observations, opened.observations)


def test_contexts_hold_what_windows_do_across_resets_and_moves() -> None:
    """Also when the memory is full, and where one slot starts anew and the other does not."""
    store = image_store(lengths=(23, 7, 15))
    slots = [[0], [1, 2]]  # episodes, one after the other
    steps = [[(e, t) for e in each for t in range(int(store.lengths[e]))] for each in slots]
    context = ContextBuffer(
        2,
        3,
        observation_shape=(40, 40),
        observation_dtype=np.uint8,
        action_shape=(),
        action_dtype=np.int64,
        frame_stack=STACK,
        slack=2,
    )
    for now in zip(*steps, strict=False):
        starting = np.array([t == 0 for _, t in now])
        context.clear(starting)
        frames = np.stack([store.trajectory(e).observations[t] for e, t in now])
        context.append(np.zeros(2), frames, np.array([t for _, t in now]))
        for rows in (None, np.array([1]), np.array([1, 0])):
            window = context.window(rows)
            for row, slot in enumerate(range(2) if rows is None else rows):
                episode, t = now[slot]
                real = min(t + 1, 3)
                cut = windows.gather(
                    store, np.array([episode]), np.array([t + 1 - real]), real, frame_stack=STACK
                )
                np.testing.assert_array_equal(window.observations[row, -real:], cut.observations[0])
                assert window.mask[row].sum() == real


class Frames(gym.Env[Any, Any]):
    """Plays an episode of a store back."""

    def __init__(self, frames: np.ndarray[Any, Any]) -> None:
        self._frames = frames
        self.observation_space = gym.spaces.Box(0, 255, frames.shape[1:], np.uint8)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._step = 0
        return self._frames[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._frames[self._step], 0.0, False, False, {}


def test_stacks_are_those_of_gymnasiums_wrapper() -> None:
    store = image_store()
    env = FrameStackObservation(Frames(store.trajectory(1).observations), STACK, padding_type="zero")
    seen = [env.reset()[0], *(env.step(0)[0] for _ in range(8))]
    window = windows.gather(store, np.array([1]), np.array([0]), 9, frame_stack=STACK)
    np.testing.assert_array_equal(window.observations[0], np.stack(seen))
