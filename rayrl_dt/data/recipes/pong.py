"""A scripted player of Pong that wins: it foresees where the ball comes, and tries out how to hit it.

Only balls that leave fast or steeply beat the other side. One press moves the paddle by some 22 units, so that it
cannot be aimed at rest: shortly before the contact all pairs of actions with FIRE, which speeds the ball up, are played
on the emulator's saved state, and the pair with the best return is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayrl_dt.data.recipes.players import Player

__all__ = ["PongPlayer"]

Array = np.ndarray[Any, Any]

_CONTACT = 188  # where the ball meets the paddle
_TOP, _BOTTOM = 44, 205
_CENTER = 7  # of the paddle, from the byte that places it
_COAST = 13  # how far it moves on after a press
_SLACK = 10
_REST = 120
_SKIP = 4  # frames of an action
_PATIENCE = 250
_RESTLESS = 0.3
_SHOTS = ("FIRE", "RIGHTFIRE", "LEFTFIRE")


class PongPlayer(Player):
    """Plays the right paddle."""

    burst, worst, best = 24, 0.15, 0.008

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        super().__init__(env, rng)
        self._codes = list(env.unwrapped._action_set)
        self._x, self._y, self._paddle = 0, 0, _REST
        self._planned: list[int] = []
        self._points, self._since = 0, 0

    def act(self, memory: Array) -> int:
        """Choose; see `Player`."""
        x, y, paddle = int(memory[49]), int(memory[54]), int(memory[51])
        points = int(memory[13]) + int(memory[14])
        self._since = 0 if points != self._points else self._since + 1
        dx, dy, move = x - self._x, y - self._y, paddle - self._paddle
        known = y > 0 and self._y > 0 and points == self._points
        self._x, self._y, self._paddle, self._points = x, y, paddle, points
        if self._since > _PATIENCE and self.rng.random() < _RESTLESS:
            self._planned = []
            return int(self.rng.integers(len(self._codes)))
        if self._planned:
            return self._planned.pop(0)
        if not known or dx <= 0 or x >= _CONTACT:
            return self._towards(_REST, paddle, move)
        steps = (_CONTACT - x) / dx
        if 1.2 <= steps <= 2.6:
            first, second = self._best_shot()
            self._planned = [second]
            return first
        return self._towards(_reflected(y + dy * steps) - _CENTER, paddle, move)

    def _towards(self, wanted: float, paddle: int, move: int) -> int:
        coast = _COAST * np.sign(move) if abs(move) > _CENTER else 0
        error = wanted - paddle - coast
        return self.actions["LEFT" if error > _SLACK else "RIGHT" if error < -_SLACK else "NOOP"]

    def _best_shot(self) -> tuple[int, int]:
        ale = self.env.unwrapped.ale
        saved = ale.cloneState()
        codes = [self.actions[name] for name in _SHOTS]
        shots = [(first, second) for first in codes for second in codes]
        values = []
        for shot in shots:
            values.append(self._value(shot))
            ale.restoreState(saved)
        return shots[int(np.argmax(values))]

    def _value(self, shot: tuple[int, int]) -> float:
        """Return how fast and steeply the ball leaves after two actions, -1 where it is missed."""
        ale = self.env.unwrapped.ale
        for action in (*shot, 0):
            for _ in range(_SKIP):
                ale.act(self._codes[action])
        before = ale.getRAM().astype(int)
        for _ in range(_SKIP):
            ale.act(self._codes[0])
        after = ale.getRAM().astype(int)
        dx, dy = (abs(after[byte] - before[byte]) / _SKIP for byte in (49, 54))
        returned = after[49] < before[49] < _CONTACT + 2 and after[54] > 0
        return dy + 0.5 * dx if returned else -1.0


def _reflected(y: float) -> float:
    """Return where a ball at height y is, when it is reflected above and below."""
    span = _BOTTOM - _TOP
    folded = (y - _TOP) % (2 * span)
    return _TOP + (folded if folded <= span else 2 * span - folded)
