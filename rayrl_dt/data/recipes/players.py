"""Scripted players of Atari games, by what the game's memory says.

Bytes of the memory are those of public annotations (Anand et al. 2019, "Unsupervised state representation learning in
Atari"), checked by playing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

__all__ = ["BreakoutPlayer", "CleanFreewayPlayer", "FreewayPlayer", "Player"]

Array = np.ndarray[Any, Any]


class Player(ABC):
    """Plays one episode.

    Args:
        env: the game.
        rng: of the episode.

    Attributes:
        burst: most steps of a burst.
        worst: probability that one begins, of the worst player.
        best: of the best.
    """

    burst: int = 0
    worst: float = 0.0
    best: float = 0.0

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        meanings: list[str] = env.unwrapped.get_action_meanings()
        self.env, self.rng = env, rng
        self.actions = {meaning: number for number, meaning in enumerate(meanings)}

    @abstractmethod
    def act(self, memory: Array) -> int:
        """Return the undisturbed action for the 128 bytes of the memory, as int64."""


class BreakoutPlayer(Player):
    """Keeps the paddle under the ball, a little to one side, which it chooses anew whenever the ball turns up."""

    burst, worst, best = 12, 0.15, 0.005
    _AIM = 5.0
    _NEAR = 3.0
    _MIDDLE = 9.0  # of the paddle, from the byte that places it

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        super().__init__(env, rng)
        self._aim, self._paddle, self._y, self._falls = 0.0, 0.0, 0.0, True

    def act(self, memory: Array) -> int:
        """Follow the ball; see `Player`."""
        x, y, paddle = memory[99], memory[101], memory[72]
        move, self._paddle = paddle - self._paddle, paddle
        falls = y > self._y if y != self._y else self._falls
        if self._falls and not falls:
            self._aim = self.rng.uniform(-self._AIM, self._AIM)
        self._y, self._falls = y, falls
        if y == 0:
            return self.actions["FIRE"]
        error = x - paddle - self._MIDDLE - self._aim - move / 2
        side = "RIGHT" if error > self._NEAR else "LEFT" if error < -self._NEAR else "NOOP"
        return self.actions[side]


class FreewayPlayer(Player):
    """Goes up with a probability of its own, else down or nowhere."""

    _LEAST = 0.45

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        super().__init__(env, rng)
        self._up = rng.uniform(self._LEAST, 1.0)

    def act(self, memory: Array) -> int:
        """Draw; see `Player`."""
        if self.rng.random() < self._up:
            return self.actions["UP"]
        return self.actions["DOWN" if self.rng.random() < 0.5 else "NOOP"]


class CleanFreewayPlayer(FreewayPlayer):
    """Always goes up."""

    _LEAST = 1.0
