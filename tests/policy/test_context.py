from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.types import Window

NAMES = ("returns_to_go", "observations", "actions", "timesteps", "mask")


def make(slots: int, length: int, slack: int, *, discrete: bool = False) -> ContextBuffer:
    return ContextBuffer(
        slots,
        length,
        observation_shape=(2,),
        observation_dtype=np.float32,
        action_shape=() if discrete else (3,),
        action_dtype=np.int64 if discrete else np.float32,
        slack=slack,
    )


class Lists:
    """The same, slot by slot, as plainly as can be."""

    def __init__(self, slots: int, length: int, *, discrete: bool) -> None:
        self.length = length
        self.steps: list[list[dict[str, Any]]] = [[] for _ in range(slots)]
        self.no_action: Any = np.int64(0) if discrete else np.zeros(3, np.float32)

    def clear(self, slots: list[int]) -> None:
        for slot in slots:
            self.steps[slot] = []

    def append(self, returns: Any, observations: Any, timesteps: Any) -> None:
        for slot, steps in enumerate(self.steps):
            steps.append(
                {
                    "returns_to_go": np.float32([returns[slot]]),
                    "observations": observations[slot],
                    "actions": self.no_action,
                    "timesteps": timesteps[slot],
                    "mask": True,
                }
            )

    def set_actions(self, actions: Any) -> None:
        for slot, steps in enumerate(self.steps):
            steps[-1]["actions"] = actions[slot]

    def window(self) -> dict[str, Any]:
        rows = []
        for steps in self.steps:
            recent = steps[-self.length :]
            padding = [{name: np.zeros_like(steps[-1][name]) for name in NAMES}] * (self.length - len(recent))
            rows.append(padding + recent)
        return {name: np.array([[step[name] for step in row] for row in rows]) for name in NAMES}


def assert_same(window: Window[Any], expected: dict[str, Any]) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(getattr(window, name), expected[name], err_msg=name)


@settings(max_examples=80, deadline=None)
@given(
    slots=st.integers(1, 3),
    length=st.integers(1, 5),
    slack=st.integers(0, 4),
    discrete=st.booleans(),
    steps=st.lists(st.tuples(st.sets(st.integers(0, 2)), st.booleans()), min_size=1, max_size=25),
    seed=st.integers(0, 99),
)
def test_equals_lists_of_steps(
    slots: int, length: int, slack: int, discrete: bool, steps: list[tuple[set[int], bool]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    buffer, lists = make(slots, length, slack, discrete=discrete), Lists(slots, length, discrete=discrete)
    for cleared, as_mask in steps:
        starting = sorted(slot for slot in cleared if slot < slots)
        buffer.clear(np.isin(np.arange(slots), starting) if as_mask else np.array(starting, np.int64))
        lists.clear(starting)
        returns, times = rng.normal(size=slots), rng.integers(1, 100, slots)
        observations = rng.normal(size=(slots, 2)).astype(np.float32)
        buffer.append(returns, observations, times)
        lists.append(returns, observations, times)
        assert_same(buffer.window(), lists.window())
        rows = rng.permutation(slots)[: rng.integers(1, slots + 1)]
        assert_same(buffer.window(rows), {name: values[rows] for name, values in lists.window().items()})
        if rng.random() < 0.8:
            actions = (
                rng.integers(9, size=slots) if discrete else rng.normal(size=(slots, 3)).astype(np.float32)
            )
            buffer.set_actions(actions)
            lists.set_actions(actions)


@pytest.mark.parametrize("slack", [1, 256])
def test_many_steps(slack: int) -> None:
    buffer = make(2, 4, slack)
    for step in range(1000):
        buffer.append(np.array([step, -step]), np.full((2, 2), step, np.float32), np.array([step, step]))
        buffer.set_actions(np.full((2, 3), step, np.float32))
    assert buffer.appended == 1000
    window = buffer.window()
    assert window.timesteps.tolist() == [[996, 997, 998, 999]] * 2
    assert window.actions[1, :, 0].tolist() == [996, 997, 998, 999]
    assert window.returns_to_go[1, :, 0].tolist() == [-996, -997, -998, -999]


def test_before_the_first_step_all_is_padding() -> None:
    window = make(2, 3, 1).window()
    assert not window.mask.any()
    assert (window.batch_size, window.context_length) == (2, 3)


def test_a_cleared_slot_is_all_padding() -> None:
    buffer = make(2, 3, 5)
    for step in range(4):
        buffer.append(np.ones(2), np.ones((2, 2)), np.full(2, step + 1))
        buffer.set_actions(np.ones((2, 3)))
    buffer.clear(np.array([True, False]))
    window = buffer.window()
    for name in NAMES:
        assert not getattr(window, name)[0].any() and getattr(window, name)[1].all()


def test_the_window_of_all_slots_is_not_a_copy() -> None:
    buffer = make(2, 3, 5)
    buffer.append(np.zeros(2), np.ones((2, 2)), np.zeros(2))
    assert np.shares_memory(buffer.window().observations, buffer._observations)
    assert not np.shares_memory(buffer.window(np.array([0])).observations, buffer._observations)
