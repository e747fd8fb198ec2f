"""Point mazes of gymnasium-robotics: way-points along the shortest path, at graded skill."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

__all__ = ["WayPoints"]

Array = np.ndarray[Any, Any]
Cell = tuple[int, int]
_WALL = 1
_STIFFNESS, _DAMPING = 10.0, 1.0


class WayPoints:
    """Heads for the next cell of the shortest path to the goal, and in the goal's cell for the goal itself.

    Args:
        maze_map: rows of cells, 1 being a wall. Cells have size 1, the map is centerd on the origin, rows
            go down.
    """

    def __init__(self, maze_map: list[list[Any]]) -> None:
        rows, columns = len(maze_map), len(maze_map[0])
        self._center = np.array([columns / 2, rows / 2])
        free = [(i, j) for i in range(rows) for j in range(columns) if maze_map[i][j] != _WALL]
        # next_cell[goal][here]: (rows, columns, rows, columns, 2)
        self._next_cell = np.zeros((rows, columns, rows, columns, 2), np.int64)
        for goal in free:
            for here, there in _towards(goal, set(free)).items():
                self._next_cell[goal][here] = there

    def __call__(self, observations: Array) -> Array:
        """Map `(E, 8)` observations (achieved goal, desired goal, position, velocity) to `(E, 2)` forces."""
        position, goal, velocity = observations[:, 0:2], observations[:, 2:4], observations[:, 6:8]
        here, target = self._cells(position), self._cells(goal)
        following = self._next_cell[target[:, 0], target[:, 1], here[:, 0], here[:, 1]]
        arrived = (here == target).all(axis=1, keepdims=True)
        way_point = np.where(arrived, goal, self._positions(following))
        return _STIFFNESS * (way_point - position) - _DAMPING * velocity

    def _cells(self, positions: Array) -> Array:
        """`(E, 2)` positions to rows and columns."""
        x, y = positions.T
        cells = np.stack([np.floor(self._center[1] - y), np.floor(x + self._center[0])], axis=1)
        return cells.astype(np.int64)

    def _positions(self, cells: Array) -> Array:
        """Rows and columns to the positions of the cells' centers."""
        row, column = cells.T
        return np.stack([column + 0.5 - self._center[0], self._center[1] - row - 0.5], axis=1)


def _towards(goal: Cell, free: set[Cell]) -> dict[Cell, Cell]:
    """For each free cell the next cell on a shortest path to the goal (breadth first)."""
    towards = {goal: goal}
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            neighbor = (cell[0] + step[0], cell[1] + step[1])
            if neighbor in free and neighbor not in towards:
                towards[neighbor] = cell
                queue.append(neighbor)
    return towards
