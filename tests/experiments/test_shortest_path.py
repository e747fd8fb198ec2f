"""The graph, its walks and their returns by hand; choosing returns; and that short paths are learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrl_dt.errors import UserError
from rayrl_dt.experiments import shortest_path
from rayrl_dt.experiments.graph_walks import HORIZON, MISSED, Graph, Paths, random_graph, random_walks
from rayrl_dt.experiments.return_model import GRAPH_ORDER, ReturnModel, fit
from rayrl_dt.experiments.shortest_path import generate, prior

GOAL = 3


def graph_of(*edges: tuple[int, int], nodes: int = 6, goal: int = GOAL) -> Graph:
    joined = np.zeros((nodes, nodes), bool)
    for one, other in edges:
        joined[one, other] = joined[other, one] = True
    return Graph(joined, goal)


def hand_made() -> Graph:
    """0 - 1 - 2 - 3 (the goal), a detour 0 - 4 - 5 - 2 and no way round."""
    return graph_of((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 2))


def paths_of(*rows: list[int]) -> Paths:
    """Paths given by their nodes up to the goal, or for the whole horizon."""
    nodes = np.array([row + [row[-1]] * (HORIZON + 1 - len(row)) for row in rows])
    return Paths(nodes, nodes[:, 1:].copy(), GOAL)


def test_distances_by_hand() -> None:
    assert hand_made().distances().tolist() == [3, 2, 1, 0, 3, 2]
    island = graph_of((0, 1), (1, 3), (2, 4))
    assert island.distances().tolist() == [2, 1, -1, 0, -1, -1]


def test_an_action_names_the_next_node_and_stays_without_an_edge() -> None:
    graph = hand_made()
    nodes, actions = np.array([0, 0, 0, 2, 3, 3]), np.array([1, 2, 0, 3, 2, 0])
    assert graph.step(nodes, actions).tolist() == [1, 0, 0, 3, 3, 3]  # nothing leads away from the goal


def test_random_graphs_let_every_node_reach_the_goal() -> None:
    counts = []
    for seed in range(8):
        graph = random_graph(seed)
        assert graph.edges.shape == (20, 20)
        assert (graph.edges == graph.edges.T).all() and not graph.edges.diagonal().any()
        distances = graph.distances()
        assert distances.min() == 0 and distances.max() <= HORIZON and (distances == 0).sum() == 1
        counts.append(graph.edges.sum() // 2)
    # 19 are needed to join 20 nodes; a tenth of the 190 pairs would be 19.
    assert min(counts) >= 19 and 20 < np.mean(counts) < 27
    assert (random_graph(0).edges == random_graph(0).edges).all()
    assert (random_graph(0).edges != random_graph(1).edges).any()


def test_random_walks_take_random_edges_until_the_goal() -> None:
    graph = hand_made()
    walks = random_walks(graph, 3000, seed=0)
    assert walks.nodes.shape == (3000, HORIZON + 1) and walks.actions.shape == (3000, HORIZON)
    here, there = walks.nodes[:, :-1], walks.nodes[:, 1:]
    moving = here != GOAL
    assert graph.edges[here[moving], there[moving]].all() and (walks.actions == there)[moving].all()
    assert (there[~moving] == GOAL).all()
    assert np.bincount(walks.nodes[:, 0], minlength=6) / 3000 == pytest.approx(
        [0.2] * 3 + [0] + [0.2] * 2, abs=0.03
    )
    from_two = there[here == 2]
    assert np.bincount(from_two, minlength=6) / len(from_two) == pytest.approx(
        [0, 1 / 3, 0, 1 / 3, 0, 1 / 3], abs=0.03
    )
    again, other = random_walks(graph, 3000, seed=0), random_walks(graph, 3000, seed=1)
    assert (again.nodes == walks.nodes).all() and (other.nodes != walks.nodes).any()


def test_rewards_and_returns_by_hand() -> None:
    late = [1, 0] * 4 + [1, 2, 3]
    lost = [1, 0] * 5 + [1]
    paths = paths_of([0, 1, 2, 3], late, lost)
    assert paths.rewards[0].tolist() == [-1] * 3 + [0] * 7
    assert paths.rewards[1].tolist() == paths.rewards[2].tolist() == [-1] * 10
    assert paths.returns[0].tolist() == [3, 2, 1] + [0] * 8
    assert paths.returns[1].tolist() == list(range(10, -1, -1))
    assert paths.returns[2].tolist() == [MISSED] * 11
    assert paths.steps_to_goal.tolist() == [3, 10, MISSED]


def test_a_walk_is_learned_from_each_of_its_steps_on() -> None:
    lost = [1, 0] * 5 + [1]
    data = paths_of([0, 1, 2, 3], lost).sequences()
    assert len(data) == 3 + HORIZON
    rows = [
        (states[:n].tolist(), actions[:n].tolist(), returns[: n + 1].tolist())
        for returns, states, actions, n in zip(
            data.returns, data.states, data.actions, data.lengths, strict=True
        )
    ]
    assert ([0, 1, 2], [1, 2, 3], [3, 2, 1, 0]) in rows
    assert ([2], [3], [1, 0]) in rows
    assert ([0, 1], [1, 0], [MISSED] * 3) not in rows  # the last two steps of the other walk are 1, 0, 1 ...
    assert ([1, 0], [0, 1], [MISSED] * 3) in rows
    assert sorted(data.lengths.tolist()) == sorted([3, 2, 1, *range(1, 11)])


def test_paths_are_absent_if_no_other_is_the_same() -> None:
    known = paths_of([0, 1, 2, 3], [1, 2, 3])
    asked = paths_of([1, 2, 3], [0, 4, 5, 2, 3], [2, 3], [0, 1, 2, 3])
    assert asked.absent_from(known).tolist() == [False, True, True, False]


def test_the_prior_falls_with_the_length_and_excludes_a_miss() -> None:
    weights = prior()
    assert weights.shape == (HORIZON + 2,) and float(weights.sum()) == pytest.approx(1)
    assert weights[0] == weights[MISSED] == 0
    torch.testing.assert_close(weights[1:MISSED] / weights[HORIZON], torch.arange(10.0, 0, -1))


class Fake:
    """Deems 2 steps as likely as `share` and 5 steps for the rest; goes to the node 3 - R for a told R up to 3."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.histories: list[list[int]] = []

    def __call__(self, returns: Tensor, nodes: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.histories.append(returns[0].tolist())
        likely = torch.zeros(*nodes.shape, HORIZON + 2)
        likely[..., 2], likely[..., 5] = self.share, 1 - self.share
        wanted = torch.nn.functional.one_hot((3 - returns).clamp(min=0), 6)
        return likely.log(), torch.where(wanted == 1, 0.0, -torch.inf)


@pytest.mark.parametrize(("share", "chosen"), [(0.5, 2), (0.018, 2), (0.016, 5), (0.0, 5)])
def test_the_return_chosen_maximizes_likelihood_times_prior(share: float, chosen: int) -> None:
    # (9 / 6)^10 is 58: two steps are chosen even where five are up to 58 times as likely.
    fake: Any = Fake(share)
    generate(fake, hand_made(), np.array([0]), seed=0)
    assert fake.histories[-1] == [chosen] * HORIZON
    # Returns chosen earlier are part of the history, and the slot of the one to choose is still empty.
    assert fake.histories[4] == [chosen, chosen, 0] and fake.histories[5] == [chosen] * 3


@pytest.mark.slow
def test_the_action_follows_from_the_return_chosen() -> None:
    fake: Any = Fake(0.5)
    made = generate(fake, hand_made(), np.array([0, 2]), seed=0)
    assert (made.actions == 1).all()
    assert made.nodes[:, :3].tolist() == [[0, 1, 1], [2, 1, 1]]


def test_short_paths_are_learned_from_random_walks() -> None:
    graph = hand_made()
    walks = random_walks(graph, 500, seed=0)
    sizes = {"return_classes": MISSED + 1, "states": 6, "actions": 6, "steps": HORIZON}
    model = ReturnModel(**sizes, order=GRAPH_ORDER, width=32, layers=1)
    history = fit(model, walks.sequences(), steps=250, batch_size=32, lr=1e-2, seed=0)
    assert np.mean(history[-10:]) < 0.3 * history[0]
    starts = walks.nodes[:, 0]
    fewest = graph.distances()[starts]
    made = generate(model, graph, starts, seed=0)
    assert (walks.steps_to_goal == fewest).mean() < 0.3
    assert (made.steps_to_goal == fewest).mean() > 0.9
    again, other = generate(model, graph, starts, seed=0), generate(model, graph, starts, seed=1)
    assert (again.actions == made.actions).all() and (other.actions != made.actions).any()


def test_the_experiment_is_a_function_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortest_path, "WALKS", 60)
    results = [
        shortest_path.run(tmp_path / name, seed=seed, steps=3)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert results[0] == results[1] != results[2]
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == results[0]
    assert (tmp_path / "a" / "steps.png").stat().st_size > 5_000
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Steps to the goal" in page and "data:image/png" in page
    paths = results[0]["paths"]
    assert list(paths) == ["random walks", "generated", "shortest possible"]
    for numbers in paths.values():
        assert len(numbers["histogram"]) == HORIZON + 1 and sum(numbers["histogram"]) == 60
        assert numbers["histogram"][-1] == round(60 * numbers["missed"])
    best = paths["shortest possible"]
    assert best["missed"] == 0 and best["shortest"] == 1
    assert best["mean_steps"] <= min(paths[name]["mean_steps"] for name in ("random walks", "generated"))
    assert results[0]["absent_and_shortest"] <= results[0]["absent_from_data"] <= 1


def test_a_missed_path_counts_as_the_horizon() -> None:
    numbers = shortest_path._summary(np.array([2, MISSED]), np.array([2, 4]))
    assert numbers["mean_steps"] == 6 and numbers["missed"] == 0.5 and numbers["shortest"] == 0.5
    assert numbers["histogram"] == [0, 1, *[0] * 8, 1]


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        shortest_path.run(tmp_path / "new", steps=0)
    assert not (tmp_path / "new").exists()
