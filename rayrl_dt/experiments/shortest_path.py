"""Shortest paths in a graph, learned from random walks alone (Decision Transformer paper, section 1).

A fixed graph of 20 nodes, any two joined with probability 0.1; an action names the node to go to, and stays
where there is no such edge. The reward is 0 at the goal and -1 elsewhere; a walk ends at the goal or after 10
steps. From 1,000 random walks a model learns which returns and actions follow. Asked for *high* returns among
those it deems possible, it strings together paths far shorter than the walks, many of which it never saw.

Returns are classes: k is a return of -k, a walk that is k steps from its end at the goal. A walk that misses
the goal has a class of its own: its return is as bad as can be, not the -10 of one that arrives at the last step.

Where the paper is silent: the graph is undirected, and redrawn until each node is within 10 steps of the goal
(5% of the draws are connected); walks start at a random node other than the goal and take a random edge;
a step's tokens are (s_t, R_t, a_t), so that a return is chosen for the node where the path is; each walk is
learned from each of its steps on, like the windows of Decision Transformer; the return chosen is the most
likely one, and actions are sampled. Most paths that still miss the goal begin far away with a return that is out
of reach: a prior to the tenth power outweighs the little that a softmax leaves to the impossible.

Shape legend: N paths, V nodes, T horizon (10 steps).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.errors import whole
from rayrl_dt.experiments.return_model import (
    GRAPH_ORDER,
    Progress,
    ReturnModel,
    Sequences,
    Training,
    fit,
)
from rayrl_dt.reports.document import Block, Paragraph, Picture, Table, Tiles, number
from rayrl_dt.reports.page import make_folder, write_page
from rayrl_dt.reports.style import COLORS, INK, canvas, finish, style_axes
from rayrl_dt.seeding import numpy_generator, torch_generator

__all__ = [
    "HORIZON",
    "MISSED",
    "STEPS",
    "Graph",
    "Paths",
    "generate",
    "prior",
    "random_graph",
    "random_walks",
    "run",
    "train",
]

HORIZON = 10
"""T: steps after which a walk ends."""
MISSED = HORIZON + 1
"""Class of the return of a walk that does not reach the goal."""
STEPS = 2_500
"""Gradient steps unless told otherwise: about a minute on one free core."""
NODES = 20
EDGE_PROBABILITY = 0.1
WALKS = 1_000
SHARPNESS = 10
"""The power to which the prior over returns is raised."""

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
        """Return the fewest steps from each node to the goal, `(V,)`, by breadth-first search; -1 for never."""
        distances = np.full(len(self.edges), -1, np.int64)
        distances[self.goal] = 0
        queue = deque([self.goal])
        while queue:
            node = queue.popleft()
            for neighbor in np.flatnonzero(self.edges[node]).tolist():
                if distances[neighbor] < 0:
                    distances[neighbor] = distances[node] + 1
                    queue.append(neighbor)
        return distances


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


def prior() -> Tensor:
    """Return the preference for high returns, `(T + 2,)`: proportional to T + 1 - k for k steps, none for a miss.

    At the goal (k = 0) nothing is left to choose, so that class has none either.
    """
    steps = torch.arange(HORIZON + 2)
    weights = torch.where((steps > 0) & (steps <= HORIZON), HORIZON + 1.0 - steps, 0.0)
    return weights / weights.sum()


def train(
    graph: Graph, walks: Paths, *, seed: int, steps: int, progress: Progress | None = None
) -> ReturnModel:
    """Train a model of the returns and actions of walks in a graph."""
    nodes = len(graph.edges)
    model = ReturnModel(
        return_classes=MISSED + 1,
        states=nodes,
        actions=nodes,
        steps=HORIZON,
        order=GRAPH_ORDER,
        seed=seed,
    )
    fit(model, walks.sequences(), Training(steps), seed=seed, progress=progress)
    return model


@torch.inference_mode()
def generate(model: ReturnModel, graph: Graph, starts: IntArray, *, seed: int) -> Paths:
    """Generate one path from each start `(N,)`.

    At each node the return is the R that maximizes P_model(R | history) P_prior(R)^10; the action is drawn from
    P_model(a | history, R).
    """
    generator = torch_generator(seed, "generate")
    returns, actions = (torch.zeros(len(starts), HORIZON, dtype=torch.int64) for _ in range(2))
    nodes = torch.zeros(len(starts), HORIZON + 1, dtype=torch.int64)
    nodes[:, 0] = torch.from_numpy(starts)
    preference = prior() ** SHARPNESS
    for step in range(HORIZON):
        now = slice(0, step + 1)
        # Neither prediction sees its own slot, which still holds a zero.
        logits, _ = model(returns[:, now], nodes[:, now], actions[:, now])
        returns[:, step] = (logits[:, step].softmax(dim=-1) * preference).argmax(dim=-1)
        _, logits = model(returns[:, now], nodes[:, now], actions[:, now])
        actions[:, step] = torch.multinomial(logits[:, step].softmax(dim=-1), 1, generator=generator)[:, 0]
        nodes[:, step + 1] = torch.from_numpy(graph.step(nodes[:, step].numpy(), actions[:, step].numpy()))
    return Paths(nodes.numpy(), actions.numpy(), graph.goal)


def run(
    folder: Path, *, seed: int = 0, steps: int = STEPS, progress: Progress | None = None
) -> dict[str, Any]:
    """Run the experiment and write `steps.png`, `result.json` and `report.html`.

    Args:
        folder: where to.
        seed: of everything.
        steps: gradient steps.
        progress: called after each gradient step.

    Returns:
        What `result.json` holds.

    Raises:
        UserError: `steps` or `folder` cannot be.
    """
    whole("--steps", steps, least=1)
    make_folder(folder)
    graph = random_graph(seed)
    walks = random_walks(graph, WALKS, seed=seed)
    model = train(graph, walks, seed=seed, steps=steps, progress=progress)
    starts = walks.nodes[:, 0]
    generated = generate(model, graph, starts, seed=seed)
    fewest = graph.distances()[starts]
    absent = generated.absent_from(walks)
    shortest = generated.steps_to_goal == fewest
    result: dict[str, Any] = {
        "experiment": "shortest-path",
        "seed": seed,
        "gradient_steps": steps,
        "walks": WALKS,
        "edges": int(graph.edges.sum()) // 2,
        "goal": graph.goal,
        "paths": {
            "random walks": _summary(walks.steps_to_goal, fewest),
            "generated": _summary(generated.steps_to_goal, fewest),
            "shortest possible": _summary(fewest, fewest),
        },
        "absent_from_data": float(absent.mean()),
        "absent_and_shortest": float((absent & shortest).mean()),
    }

    def compose(aside: Path) -> list[Block]:
        _draw(result["paths"], aside / "steps.png")
        return _report(result)

    write_page(folder, "report", "Shortest paths from random walks", compose, result=result)
    return result


def _summary(steps: IntArray, fewest: IntArray) -> dict[str, Any]:
    """Return numbers of one kind of paths; in their mean a miss counts as the horizon.

    The histogram counts paths by steps to the goal, from 1 on; its last bin holds the misses.
    """
    return {
        "mean_steps": float(np.minimum(steps, HORIZON).mean()),
        "missed": float((steps == MISSED).mean()),
        "shortest": float((steps == fewest).mean()),
        "histogram": np.bincount(steps, minlength=MISSED + 1)[1:].tolist(),
    }


def _draw(paths: dict[str, Any], file: Path) -> None:
    figure, (axes,) = canvas(1, 1, (7.6, 4.0))
    bins = np.arange(1, MISSED + 1)
    for index, (name, numbers) in enumerate(paths.items()):
        shares = 100 * np.array(numbers["histogram"]) / WALKS
        axes.bar(bins + 0.28 * (index - 1), shares, width=0.26, color=COLORS[index], label=name)
    axes.set_xticks(bins, [*map(str, bins[:-1]), "missed"])
    style_axes(axes, "Steps to the goal", "steps from the start to the goal", "share of paths (%)")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    finish(figure, file)


def _report(result: dict[str, Any]) -> list[Block]:
    paths = result["paths"]
    made = paths["generated"]
    return [
        Paragraph(f"{result['edges']} edges, goal {result['goal']}, seed {result['seed']}", "muted"),
        Tiles(
            [
                (
                    "Steps to the goal",
                    number(made["mean_steps"], 2),
                    f"random walks {number(paths['random walks']['mean_steps'], 2)}, "
                    f"at best {number(paths['shortest possible']['mean_steps'], 2)}",
                ),
                ("As short as can be", f"{number(100 * made['shortest'], 1)}%", "of the generated paths"),
                (
                    "Absent from the data",
                    f"{number(100 * result['absent_from_data'], 1)}%",
                    f"of the generated paths; {number(100 * result['absent_and_shortest'], 1)}% are shortest too",
                ),
            ]
        ),
        Paragraph(
            f"A model of the returns and actions of {number(result['walks'])} random walks generated one path from "
            f"the start of each walk, always preferring high returns. The graph has {NODES} nodes; a miss counts "
            f"as {HORIZON} steps."
        ),
        Picture(
            "steps.png",
            "Histogram of the steps to the goal of random walks, generated paths and shortest paths",
        ),
        Table(
            ["Paths", "Mean steps", "Missed", "Shortest"],
            [
                [
                    name.capitalize(),
                    number(numbers["mean_steps"], 2),
                    *(f"{number(100 * numbers[key], 1)}%" for key in ("missed", "shortest")),
                ]
                for name, numbers in paths.items()
            ],
        ),
    ]
