"""Behavior of graded skill: a good controller blended with noise, so that returns spread widely.

Return-conditioned policies learn from the *spread* of returns. So every tenth episode is uniformly random,
every tenth the clean controller, and the others lie between; the means of those two kinds are the data set's
reference scores.

Shape legend: E episodes side by side, S observation size, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["CLEAN", "RANDOM", "Controller", "GradedBehavior", "kind_of"]

Array = np.ndarray[Any, Any]
Controller = Callable[[Array], Array]
"""Maps observations `(E, S)` to actions `(E, A)`, not necessarily within bounds."""

RANDOM, CLEAN = 0, 1
"""Kinds of episodes; those of all other kinds are graded."""


def kind_of(episodes: Array) -> Array:
    """Return the kind, from 0 to 9, of each episode that is given by its number."""
    kinds: Array = episodes % 10
    return kinds


class GradedBehavior:
    """Acts in E episodes side by side, each with a skill of its own.

    A graded episode draws a skill (a uniform number to the power `skill_power`) and an authority (uniform).
    At random moments, about every `hold` steps, it decides with probability `skill` to follow the
    controller, else to hold one random action; what it does is scaled by its authority. Held actions explore
    further than white noise does.

    Args:
        controller: the clean controller.
        action_space: `(A,)` bounds.
        episodes: `(E,)` episode numbers; they decide which episodes are random and which are clean.
        rng: generator.
        hold: mean number of steps between decisions.
        skill_power: below 1 for more of the skilled episodes, above 1 for fewer.
        least_authority: the smallest scale of a graded episode's actions.
    """

    def __init__(
        self,
        controller: Controller,
        action_space: gym.spaces.Box,
        episodes: Array,
        rng: np.random.Generator,
        *,
        hold: float = 10.0,
        skill_power: float = 0.5,
        least_authority: float = 0.3,
    ) -> None:
        count = len(episodes)
        self._controller = controller
        self._low, self._high = action_space.low, action_space.high
        self._rng = rng
        kinds = kind_of(episodes)
        self._graded = (kinds != RANDOM) & (kinds != CLEAN)
        self._skill = rng.uniform(size=count) ** skill_power
        self._authority = np.where(self._graded, rng.uniform(least_authority, 1.0, size=count), 1.0)
        # A random episode decides anew at every step, and always for a random action; a clean one never does.
        self._switch = np.where(self._graded, 1.0 / hold, kinds == RANDOM)
        self._following = kinds == CLEAN
        self._held = self._uniform()
        self._decide(np.ones(count, bool))

    def act(self, observations: Array) -> Array:
        """Return `(E, A)` float32 actions within bounds for observations `(E, S)`."""
        deciding = self._rng.random(len(self._skill)) < self._switch
        self._decide(deciding)
        wanted = np.clip(self._controller(observations), self._low, self._high)
        actions = np.where(self._following[:, None], wanted, self._held) * self._authority[:, None]
        return actions.astype(np.float32)

    def _decide(self, deciding: Array) -> None:
        follow = self._rng.random(len(self._skill)) < self._skill
        self._following = np.where(deciding & self._graded, follow, self._following)
        self._held = np.where(deciding[:, None], self._uniform(), self._held)

    def _uniform(self) -> Array:
        return self._rng.uniform(self._low, self._high, size=(len(self._skill), len(self._low)))
