"""A random graph with a goal, and random walks through it: the data of the shortest-path experiment.

Shape legend: N paths, V nodes, T horizon (10 steps).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from scipy.sparse.csgraph import shortest_path

from rayrl_dt.experiments.return_model import Sequences
from rayrl_dt.seeding import numpy_generator

__all__ = ["HORIZON", "MISSED", "NODES", "Graph", "IntArray", "Paths", "random_graph", "random_walks"]

HORIZON = 10
"""T: steps after which a walk ends."""
MISSED = HORIZON + 1
"""Class of the return of a walk that does not reach the goal."""
NODES = 20
EDGE_PROBABILITY = 0.1

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Graph:
    """An undirected graph with a goal.

    Attributes:
        edges: `(V, V)` bool, symmetric, False on the diagonal.
        goal: a node.
    """

    edges: np.ndarray[Any, np.dtype[np.bool_]]
    goal: int

    def step(self, nodes: IntArray, actions: IntArray) -> IntArray:
        """Return where actions lead from nodes, both `(N,)`: to the node named, if there is an edge.

        Nothing leads away from the goal.
        """
        return np.where(self.edges[nodes, actions] & (nodes != self.goal), actions, nodes)

    def distances(self) -> IntArray:
        """Return the fewest steps from each node to the goal, `(V,)`; -1 for never."""
        steps = shortest_path(self.edges, unweighted=True, indices=self.goal)
        return np.where(np.isinf(steps), -1, steps).astype(np.int64)


def random_graph(seed: int) -> Graph:
    """Draw graphs until each node reaches the goal within the horizon."""
    for attempt in count():
        rng = numpy_generator(seed, "graph", attempt)
        upper = np.triu(rng.random((NODES, NODES)) < EDGE_PROBABILITY, 1)
        graph = Graph(upper | upper.T, int(rng.integers(NODES)))
        distances = graph.distances()
        if distances.min() >= 0 and distances.max() <= HORIZON:
            return graph
    raise AssertionError


@dataclass(frozen=True)
class Paths:
    """Paths through a graph.

    Attributes:
        nodes: `(N, T + 1)` where a path is before each step and after the last; the goal once it is reached.
        actions: `(N, T)`.
        goal: the graph's.
    """

    nodes: IntArray
    actions: IntArray
    goal: int

    @property
    def rewards(self) -> IntArray:
        """`(N, T)`: 0 at the goal, -1 at every other node."""
        return np.where(self.nodes[:, :-1] == self.goal, 0, -1)

    @property
    def returns(self) -> IntArray:
        """`(N, T + 1)` classes: steps left to the goal, or `MISSED`."""
        left = np.zeros_like(self.nodes)
        left[:, :-1] = -np.cumsum(self.rewards[:, ::-1], axis=1)[:, ::-1]
        reached = self.nodes[:, -1:] == self.goal
        return np.where(reached, left, MISSED)

    @property
    def steps_to_goal(self) -> IntArray:
        """`(N,)` from the start, or `MISSED`."""
        return self.returns[:, 0]

    def sequences(self) -> Sequences:
        """Return what a model is trained on: each path from each of its steps on, up to the goal."""
        lengths = -self.rewards.sum(axis=1)
        parts = []
        for begin in range(HORIZON):
            rows = lengths > begin
            fields = self.returns, self.nodes[:, :-1], self.actions
            # Rolling puts what came before `begin` behind the end, where it is padding.
            moved = (np.roll(field[rows], -begin, axis=1) for field in fields)
            parts.append((*moved, lengths[rows] - begin))
        return Sequences(*(torch.from_numpy(np.concatenate(field)) for field in zip(*parts, strict=True)))

    def absent_from(self, others: Paths) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return whether no other path visits the same nodes in the same order, `(N,)`."""
        known = set(map(tuple, others.nodes.tolist()))
        return np.array([tuple(path) not in known for path in self.nodes.tolist()])


def random_walks(graph: Graph, walks: int, *, seed: int) -> Paths:
    """Walk along uniformly random edges, each from a uniformly random node other than the goal."""
    rng = numpy_generator(seed, "walks")
    nodes = np.zeros((walks, HORIZON + 1), np.int64)
    actions = np.zeros((walks, HORIZON), np.int64)
    nodes[:, 0] = rng.choice(np.delete(np.arange(len(graph.edges)), graph.goal), size=walks)
    for step in range(HORIZON):
        here = nodes[:, step]
        actions[:, step] = np.where(graph.edges[here], rng.random((walks, len(graph.edges))), -1.0).argmax(
            axis=1
        )
        nodes[:, step + 1] = np.where(here == graph.goal, here, graph.step(here, actions[:, step]))
    return Paths(nodes, actions, graph.goal)
