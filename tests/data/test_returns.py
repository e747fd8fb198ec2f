from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from rayrl_dt.data import returns

episodes_of_rewards = st.lists(
    hnp.arrays(np.float32, st.integers(1, 12), elements=st.integers(-64, 64).map(float)),
    min_size=1,
    max_size=6,
)


def _table(episodes: list[Any]) -> tuple[Any, Any, Any]:
    lengths = np.array([len(episode) for episode in episodes])
    return np.concatenate(episodes), np.cumsum(lengths) - lengths, lengths


@given(episodes_of_rewards)
def test_return_to_go_is_the_sum_of_what_follows(episodes: list[Any]) -> None:
    rewards, starts, lengths = _table(episodes)
    result = returns.returns_to_go(rewards, starts, lengths)
    assert result.dtype == np.float32
    for start, length in zip(starts, lengths, strict=True):
        rtg, paid = result[start : start + length], rewards[start : start + length]
        assert rtg[0] == paid.sum()
        assert rtg[-1] == paid[-1]
        np.testing.assert_array_equal(rtg[:-1] - rtg[1:], paid[:-1])


@given(episodes_of_rewards)
def test_delayed_rewards_keep_the_return_and_make_it_constant(episodes: list[Any]) -> None:
    rewards, starts, lengths = _table(episodes)
    delayed = returns.delay_rewards(rewards, starts, lengths)
    result = returns.returns_to_go(delayed, starts, lengths)
    for start, length in zip(starts, lengths, strict=True):
        total = rewards[start : start + length].sum()
        assert delayed[start : start + length].sum() == total
        assert not delayed[start : start + length - 1].any()
        assert (result[start : start + length] == total).all()


def test_steps_outside_the_episodes_are_zero() -> None:
    rewards = np.ones(10, np.float32)
    result = returns.returns_to_go(rewards, np.array([6]), np.array([3]))
    np.testing.assert_array_equal(result, [0, 0, 0, 0, 0, 0, 3, 2, 1, 0])


def test_long_episodes_are_summed_in_double_precision() -> None:
    rewards = np.full(1_000_000, 0.1, np.float32)
    result = returns.returns_to_go(rewards, np.array([0]), np.array([len(rewards)]))
    assert result[0] == pytest.approx(len(rewards) * float(np.float32(0.1)), rel=1e-7)


@given(episodes_of_rewards, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_discounted_returns_are_the_recursion_of_a_critic(episodes: list[Any], gamma: float) -> None:
    rewards, starts, lengths = _table(episodes)
    result = returns.discounted_returns(rewards, starts, lengths, gamma)
    for start, length in zip(starts, lengths, strict=True):
        total = 0.0
        for step in reversed(range(start, start + length)):
            total = float(rewards[step]) + gamma * total
            assert result[step] == np.float32(total)
    if gamma == 1.0:
        np.testing.assert_array_equal(result, returns.returns_to_go(rewards, starts, lengths))


def test_decrement_in_a_rollout() -> None:
    target, rewards = np.array([10.0]), [1.0, 2.5, -3.0]
    to_go = target
    for reward in rewards:
        to_go = returns.next_return_to_go(to_go, np.array([reward]), delayed=False)
    assert to_go + sum(rewards) == target
    assert returns.next_return_to_go(target, np.array([1.0]), delayed=True) == target
