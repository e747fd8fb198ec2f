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

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rayrl_dt.errors import whole
from rayrl_dt.experiments.graph_walks import (
    HORIZON,
    MISSED,
    NODES,
    Graph,
    IntArray,
    Paths,
    random_graph,
    random_walks,
)
from rayrl_dt.experiments.return_model import GRAPH_ORDER, Progress, ReturnModel, fit, unseen
from rayrl_dt.reports.document import Block, Paragraph, Picture, Table, Tiles, number, percent
from rayrl_dt.reports.page import result_folder, write_page
from rayrl_dt.reports.style import COLORS, INK, canvas, style_axes
from rayrl_dt.seeding import torch_generator

__all__ = ["STEPS", "generate", "prior", "run", "train"]

STEPS = 2_500
"""Gradient steps unless told otherwise: about a minute on one free core."""
WALKS = 1_000
SHARPNESS = 10
"""The power to which the prior over returns is raised."""


def prior() -> Tensor:
    """Return the preference for high returns, `(T + 2,)`: proportional to T + 1 - k for k steps, none for a miss.

    At the goal (k = 0) nothing is left to choose, so that class has none either.
    """
    steps = torch.arange(HORIZON + 2)
    weights = torch.where((steps > 0) & (steps <= HORIZON), HORIZON + 1.0 - steps, 0.0)
    return weights / weights.sum()


def train(graph: Graph, walks: Paths, *, seed: int, steps: int, progress: Progress = unseen) -> ReturnModel:
    """Train a model of the returns and actions of walks in a graph."""
    nodes = len(graph.edges)
    sizes = {"return_classes": MISSED + 1, "states": nodes, "actions": nodes, "steps": HORIZON}
    model = ReturnModel(**sizes, order=GRAPH_ORDER, seed=seed)
    fit(model, walks.sequences(), steps=steps, seed=seed, progress=progress)
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


def run(folder: Path, *, seed: int = 0, steps: int = STEPS, progress: Progress = unseen) -> dict[str, Any]:
    """Run the experiment, write `report.html` into the folder, and return what `result.json` beside it holds.

    Raises:
        UserError: `steps` or `folder` cannot be.
    """
    whole("--steps", steps, least=1)
    settings = {"experiment": "shortest-path", "seed": seed, "gradient_steps": steps}
    result_folder(folder, settings)
    graph = random_graph(seed)
    walks = random_walks(graph, WALKS, seed=seed)
    model = train(graph, walks, seed=seed, steps=steps, progress=progress)
    starts = walks.nodes[:, 0]
    generated = generate(model, graph, starts, seed=seed)
    fewest = graph.distances()[starts]
    absent = generated.absent_from(walks)
    shortest = generated.steps_to_goal == fewest
    result: dict[str, Any] = {
        **settings,
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
    write_page(folder, "report", "Shortest paths from random walks", _report(result), result=result)
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


def _draw(paths: dict[str, Any]) -> Figure:
    figure, (axes,) = canvas(1, 1, (7.6, 4.0))
    bins = np.arange(1, MISSED + 1)
    for index, (name, numbers) in enumerate(paths.items()):
        shares = 100 * np.array(numbers["histogram"]) / WALKS
        axes.bar(bins + 0.28 * (index - 1), shares, width=0.26, color=COLORS[index], label=name)
    axes.set_xticks(bins, [*map(str, bins[:-1]), "missed"])
    style_axes(axes, "Steps to the goal", "steps from the start to the goal", "share of paths (%)")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _report(result: dict[str, Any]) -> list[Block]:
    paths = result["paths"]
    made = paths["generated"]
    return [
        Paragraph(f"{result['edges']} edges, goal {result['goal']}, seed {result['seed']}", "muted"),
        Paragraph(
            f"A model of random walks goes to the goal in {number(made['mean_steps'], 2)} steps, where the walks take "
            f"{number(paths['random walks']['mean_steps'], 2)} and "
            f"{number(paths['shortest possible']['mean_steps'], 2)} would do."
        ),
        Tiles(
            [
                (
                    "Steps to the goal",
                    number(made["mean_steps"], 2),
                    f"random walks {number(paths['random walks']['mean_steps'], 2)}, "
                    f"at best {number(paths['shortest possible']['mean_steps'], 2)}",
                ),
                ("As short as can be", percent(made["shortest"]), "of the generated paths"),
                (
                    "Absent from the data",
                    percent(result["absent_from_data"]),
                    f"of the generated paths; {percent(result['absent_and_shortest'])} are shortest too",
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
            _draw(paths),
            "Histogram of the steps to the goal of random walks, generated paths and shortest paths",
        ),
        Table(
            ["Paths", "Mean steps", "Missed", "Shortest"],
            [
                [
                    name.capitalize(),
                    number(numbers["mean_steps"], 2),
                    percent(numbers["missed"]),
                    percent(numbers["shortest"]),
                ]
                for name, numbers in paths.items()
            ],
        ),
    ]
