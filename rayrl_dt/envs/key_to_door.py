"""Key-to-Door: a grid world whose reward hangs on something done, and seen, long before.

The task of section 5.4 of the Decision Transformer paper (Chen et al. 2021, after Mesnard et al. 2021): in a
first room lies a key, a second room is empty, in a third stands a door that pays 1 if the key was taken. The
paper does not state its grid; ours is chosen such that a uniformly random walk succeeds as often as theirs,
3.1% of the time (see `success_probability`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

__all__ = ["KeyToDoor", "success_probability"]

Cell = tuple[int, int]

_MOVES: tuple[Cell, ...] = ((1, 0), (-1, 0), (0, 1), (0, -1))
_CORNERS: tuple[Cell, ...] = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_KEY_ROOM, _EMPTY_ROOM, _DOOR_ROOM = range(3)


class KeyToDoor(gym.Env[np.ndarray[Any, Any], np.int64]):
    """Three rooms in a row, each left after a fixed number of steps; an episode lasts at most 15.

    Every room is a 3x3 grid that the agent enters at the center. The key lies in a random corner of the
    first room (2 steps), the second room is empty (11 steps), the door is in the middle of a random wall of
    the third (2 steps). Stepping on the key takes it; stepping on the door ends the episode, with reward 1 if
    the key was taken. All other rewards are 0. There is just enough time to reach the key, and one wrong move
    from the center misses the door, so a random walk that succeeds has done the right thing wherever it
    mattered: some thirty successes teach the task.

    A uniformly random policy takes the key with probability 1/8 and the door with 1/4: 1/32 = 3.125% succeed
    (exact, by `success_probability`; 3.17% of 100,000 simulated episodes). An optimal policy always succeeds.

    Actions: 0 right, 1 left, 2 up, 3 down; moving into a wall stays put.

    Observation, `(9,)` float32: one-hot room (3), share of the room's steps left (1), position in the room
    from -1 to 1 (2), 1 if a key or door is in sight (1), its offset from the agent in cells, halved (2, zero
    when there is none). The key vanishes when taken. Entering a room puts the agent at its center, so nothing
    in rooms 2 and 3 depends on whether the key was taken: that has to be remembered.

    `info` tells `has_key` and `success`, for tests and plots.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi"],
        "render_fps": 4,
    }

    room_steps: ClassVar[tuple[int, int, int]] = (2, 11, 2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = gym.spaces.Discrete(len(_MOVES))
        low = np.array([0, 0, 0, 0, -1, -1, 0, -1, -1], np.float32)
        self.observation_space = gym.spaces.Box(low, np.ones(9, np.float32))
        self._room = _KEY_ROOM
        self._steps_left = 0
        self._agent: Cell = (0, 0)
        self._target: Cell | None = None
        self._has_key = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Put the agent into the key room."""
        super().reset(seed=seed)
        self._has_key = False
        self._enter(_KEY_ROOM)
        return self._observation(), self._info(success=False)

    def step(self, action: np.int64) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        """Move one cell; go on to the next room when the steps of this one are used up."""
        self._agent = _move(self._agent, _MOVES[int(action)])
        self._steps_left -= 1
        reached = self._agent == self._target
        if reached and self._room == _KEY_ROOM:
            self._has_key = True
            self._target = None
        at_door = reached and self._room == _DOOR_ROOM
        success = at_door and self._has_key
        over = at_door or (self._room == _DOOR_ROOM and self._steps_left == 0)
        if self._steps_left == 0 and not over:
            self._enter(self._room + 1)
        return self._observation(), float(success), over, False, self._info(success=success)

    def render(self) -> str | None:  # type: ignore[override]
        """Draw the room: A agent, K key, D door."""
        if self.render_mode != "ansi":
            return None
        symbols = {self._agent: "A"}
        if self._target is not None:
            symbols.setdefault(self._target, "K" if self._room == _KEY_ROOM else "D")
        rows = ["".join(symbols.get((x, y), ".") for x in (-1, 0, 1)) for y in (1, 0, -1)]
        return "\n".join([f"room {self._room + 1}, {self._steps_left} steps left", *rows])

    def _enter(self, room: int) -> None:
        self._room = room
        self._steps_left = self.room_steps[room]
        self._agent = (0, 0)
        places = {_KEY_ROOM: _CORNERS, _EMPTY_ROOM: None, _DOOR_ROOM: _MOVES}[room]
        self._target = None if places is None else places[int(self.np_random.integers(len(places)))]

    def _observation(self) -> np.ndarray[Any, Any]:
        x, y = self._agent
        values = np.zeros(9, np.float32)
        values[self._room] = 1.0
        values[3] = self._steps_left / self.room_steps[self._room]
        values[4:6] = (x, y)
        if self._target is not None:
            values[6:9] = (1.0, (self._target[0] - x) / 2, (self._target[1] - y) / 2)
        return values

    def _info(self, *, success: bool) -> dict[str, Any]:
        return {"has_key": self._has_key, "success": success}


def success_probability() -> Fraction:
    """Return the exact probability that a uniformly random policy takes the key and reaches the door.

    The rooms are independent and symmetric, so it is the product over the key room and the door room of the
    probability that a random walk from the center hits one given target in time.
    """
    return _hit(_CORNERS[0], KeyToDoor.room_steps[_KEY_ROOM]) * _hit(
        _MOVES[0], KeyToDoor.room_steps[_DOOR_ROOM]
    )


def _hit(target: Cell, steps: int, start: Cell = (0, 0)) -> Fraction:
    if start == target:
        return Fraction(1)
    if steps == 0:
        return Fraction(0)
    return sum((_hit(target, steps - 1, _move(start, move)) for move in _MOVES), Fraction(0)) / len(_MOVES)


def _move(cell: Cell, move: Cell) -> Cell:
    return min(max(cell[0] + move[0], -1), 1), min(max(cell[1] + move[1], -1), 1)
