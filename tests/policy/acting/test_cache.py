from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.policy.acting.cache import StepCache


def values(first: int, steps: int, slots: int = 2) -> list[torch.Tensor]:
    """Two fields that say which step and slot they are of."""
    time = torch.arange(first, first + steps, dtype=torch.float32) + 1
    slot = torch.arange(slots, dtype=torch.float32)[:, None] * 1000
    return [(time + slot)[..., None].repeat(1, 1, 3), (time + slot).to(torch.float64)]


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 5),
    slack=st.integers(0, 6),
    gaps=st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=25),
)
def test_the_window_holds_the_newest_steps(length: int, slack: int, gaps: list[tuple[int, bool]]) -> None:
    cache = StepCache(2, length, values(0, length), slack=slack)
    cache.write(values(0, length))
    end, emptied = length, 0
    for gap, clear in gaps:
        gap = min(gap, length)
        if clear:
            cache.clear(np.array([False, True]))
            emptied = end
        cache.advance(gap)
        end += gap
        cache.write(values(end - gap, gap))
        expected = values(end - length, length)
        for found, field in zip(cache.window(None), expected, strict=True):
            field[1, torch.arange(end - length, end) < emptied] = 0
            assert found.dtype == field.dtype
            assert torch.equal(found, field)
        for found, field in zip(cache.window(np.array([1])), expected, strict=True):
            assert torch.equal(found, field[1:])


@pytest.mark.parametrize("clear", [np.array([True, False]), np.array([0])])
def test_a_cleared_slot_is_zero_and_the_other_stays(clear: np.ndarray) -> None:  # type: ignore[type-arg]
    cache = StepCache(2, 3, values(0, 3))
    cache.write(values(0, 3))
    cache.clear(clear)
    for found, field in zip(cache.window(None), values(0, 3), strict=True):
        assert not found[0].any() and torch.equal(found[1], field[1])


def test_windows_of_all_slots_are_views() -> None:
    cache = StepCache(2, 3, values(0, 3))
    whole, some = cache.window(None)[0], cache.window(np.array([0, 1]))[0]
    cache.write(values(0, 3))
    assert whole.all() and not some.any()
