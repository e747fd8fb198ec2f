"""The one definition of return-to-go, for training, replay, rollout and evaluation; and the discounted one of critics.

R_t is the undiscounted sum of the rewards from step t on, *including* r_t, in raw units. The model divides
by its return scale; nothing else does. In a rollout the target return R_0 is decremented by each raw reward.
With delayed rewards (Decision Transformer, section 5.3) every R_t equals the episode's return, and a
rollout holds its target constant: one flag, carried by the store and by the policy, says which it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["delay_rewards", "discounted_returns", "next_return_to_go", "returns_to_go"]

FloatArray = np.ndarray[Any, np.dtype[np.float32]]


def returns_to_go(
    rewards: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]
) -> FloatArray:
    """Return R_t for each step of each episode.

    Args:
        rewards: `(N,)` flat raw rewards.
        starts: `(E,)` index of each episode's first step.
        lengths: `(E,)` number of steps of each episode.

    Returns:
        `(N,)` float32, summed in float64; zero outside the episodes.
    """
    result = np.zeros(len(rewards), np.float32)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        episode = np.asarray(rewards[start : start + length], np.float64)
        result[start : start + length] = np.cumsum(episode[::-1])[::-1]
    return result


def discounted_returns(
    rewards: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], gamma: float
) -> FloatArray:
    """Return the sum of gamma^k r_{t+k} up to the episode's end, for each step: what a critic's values estimate.

    An episode that ran out of time counts as if nothing came after it.

    Args:
        rewards: `(N,)` flat raw rewards.
        starts: `(E,)` index of each episode's first step.
        lengths: `(E,)` number of steps of each episode.
        gamma: the discount.

    Returns:
        `(N,)` float32, summed in float64; zero outside the episodes.
    """
    result = np.zeros(len(rewards), np.float32)
    tails = np.zeros(len(starts), np.float64)  # (E,)
    for back in range(1, int(lengths.max(initial=0)) + 1):
        live = lengths >= back
        steps = (starts + lengths - back)[live]
        tails[live] = rewards[steps] + gamma * tails[live]
        result[steps] = tails[live]
    return result


def delay_rewards(
    rewards: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]
) -> FloatArray:
    """Return rewards that pay each episode's whole return at its last step and nothing before."""
    result = np.zeros(len(rewards), np.float32)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        result[start + length - 1] = np.sum(rewards[start : start + length], dtype=np.float64)
    return result


def next_return_to_go(
    return_to_go: np.ndarray[Any, Any], reward: np.ndarray[Any, Any], *, delayed: bool
) -> np.ndarray[Any, Any]:
    """Return the return-to-go after observing `reward` (both raw); unchanged with delayed rewards."""
    return return_to_go if delayed else return_to_go - reward
