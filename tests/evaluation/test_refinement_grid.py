"""A grid of action gradients on one checkpoint: every cell, the control, the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import build_model, store_for

from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.evaluation.refined_policy import RefinedPolicy
from rayrl_dt.evaluation.refinement_grid import Cell, RefinementGrid, evaluate_grid
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import save_critic
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.reports.refinement import heat_map, write_refinement


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    env = gym.make("Pendulum-v1")
    store = store_for(env)
    model = build_model(store)
    acting = model.spec.acting(context_length=2, action_selection=None)
    path = save_bundle(acting, model.state_dict(), tmp_path / "policy")
    return save_critic(
        Bundle.open(path), new_critic(model.spec, hidden=16, seed=0).state_dict(), record={"steps": 7}
    )


@pytest.mark.slow
def grid_of(bundle: Path, **options: object) -> RefinementGrid:
    values = {
        "etas": [0.1, 1.0],
        "steps": [0, 2],
        "rules": ["adam"],
        "target": "-500",
        "episodes": 2,
        "env": "Pendulum-v1",
        **options,
    }
    return evaluate_grid(bundle, **values)  # type: ignore[arg-type]


def test_each_cell_is_an_evaluation_of_its_own(bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    grid = grid_of(bundle, progress=lambda done, total: seen.append((done, total)))
    assert [(c.settings.rule, c.settings.eta, c.settings.n) for c in grid.cells] == [
        ("adam", 0.1, 2),
        ("adam", 1.0, 2),
    ]
    assert seen[-1] == (6, 6) and grid.env_steps == 6 * 200
    assert grid.critic == {"steps": 7, "units": grid.critic["units"]} and grid.env == "Pendulum-v1"
    options: dict[str, Any] = {"targets": "-500", "episodes_per_target": 2, "env": "Pendulum-v1"}
    for cell in (grid.control, *grid.cells):
        alone = evaluate_bundle(bundle, action_gradient=cell.settings, **options)
        assert alone.targets[0].returns == cell.returns
    whole = evaluate_bundle(bundle, context_length=6, **options)
    assert whole.targets[0].returns != grid.control.returns, "the grid acts on the policy's own context"
    assert len({cell.returns for cell in (grid.control, *grid.cells)}) == 3
    assert grid.cell("adam", 0.1, 0) is grid.control and grid.cell("adam", 1.0, 2) is grid.cells[1]
    assert grid.axes == (["adam"], [0.1, 1.0], [0, 2])


@pytest.mark.slow
def test_sampled_actions_play_the_same_episodes(bundle: Path) -> None:
    policy = RefinedPolicy(bundle, targets="-500", episodes=2, env="Pendulum-v1")
    settings = SampledActions(n=5, noise=0.3)
    runs = [policy.run(how).episodes for how in (ActionGradient(n=0), settings, SampledActions(n=0))]
    policy.close()
    alone = evaluate_bundle(
        bundle, targets="-500", episodes_per_target=2, env="Pendulum-v1", sampled_actions=settings
    )
    control, sampled, idle = (tuple(episode.episode_return for episode in run) for run in runs)
    assert control == idle != sampled == alone.targets[0].returns


def test_the_same_cell_is_run_once(bundle: Path) -> None:
    grid = grid_of(bundle, etas=[0.1, 0.1, 0.0], steps=[1, 0, 1])
    assert [cell.settings.n for cell in grid.cells] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [-1]}, "n is -1"),
        ({"etas": [float("nan")]}, "eta is nan"),
        ({"rules": ["plane"]}, "Did you mean 'plain'"),
        ({"steps": [0]}, "give an n and an eta above 0"),
        ({"episodes": 0}, "at least 1"),
        ({"target": "-500,-200"}, "a grid takes one"),
        ({"env": None}, "--env"),
    ],
)
def test_bad_input_is_refused(bundle: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid_of(bundle, **options)


def test_a_bundle_without_a_critic_is_refused(
    make_store: Callable[..., TrajectoryStore], tmp_path: Path
) -> None:
    model = build_model(make_store())
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "bare")
    with pytest.raises(UserError, match="has no critic"):
        grid_of(path)


def hand_made() -> RefinementGrid:
    cells = tuple(
        Cell(ActionGradient(eta=eta, n=n, rule=rule), (100.0 * eta * n, 0.0), (5, 7))
        for rule in ("plain", "adam")
        for eta in (0.1, 0.3)
        for n in (1, 10)
    )
    control = Cell(ActionGradient(n=0), (40.0, 60.0), (9, 9))
    return RefinementGrid(control, cells, 300.0, "Env-v0", "runs/x", {}, 3, 123)


def test_the_page_holds_every_number(tmp_path: Path) -> None:
    grid = hand_made()
    page = write_refinement(grid, tmp_path / "new" / "page")
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "refinement.png",
        "report.html",
        "report.md",
        "result.json",
    ]
    text = page.read_text()
    # The control stands in every row; the highest cell is 300 / 2.
    assert text.count("50 ± 10") == 4 and "150 ± 150" in text and "2 of 8" in text
    assert "plain, η 0.3, n 10" in text
    result = json.loads((page.parent / "result.json").read_text())
    assert result["control"]["returns"] == [40.0, 60.0] and len(result["cells"]) == 8
    assert (result["cells"][3]["eta"], result["cells"][3]["n"], result["cells"][3]["return_mean"]) == (
        0.3,
        10,
        150.0,
    )


def test_the_heat_map_shows_the_means() -> None:
    figure = heat_map(hand_made())
    first, second, _ = figure.axes
    for axes in (first, second):
        np.testing.assert_allclose(axes.images[0].get_array(), [[50, 5, 50], [50, 15, 150]])
        # White, the middle of the colors, is the control.
        assert np.mean(axes.images[0].get_clim()) == pytest.approx(50.0)
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["plain", "adam"]
