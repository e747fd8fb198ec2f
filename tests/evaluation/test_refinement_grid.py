"""A grid of action gradients on one checkpoint: every cell, the control, the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import build_model, scramble, store_for

from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.evaluation.refined_policy import RefinedPolicy
from rayrl_dt.evaluation.refinement_grid import (
    Cell,
    RefinementGrid,
    action_gradients,
    double_checks,
    evaluate_grid,
)
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import save_critic
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.refinement import WayToAct
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.reports.refinement import calibration_plot, heat_map, write_refinement


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


def grid_of(
    bundle: Path,
    *,
    etas: Sequence[float] = (0.1, 1.0),
    steps: Sequence[int] = (0, 2),
    rules: Sequence[str] = ("adam",),
    ways: Sequence[WayToAct] = (),
    **options: Any,
) -> RefinementGrid:
    values = {"target": "-500", "episodes": 2, "env": "Pendulum-v1", **options}
    return evaluate_grid(bundle, ways or action_gradients(etas, steps, rules), **values)


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
    (sweep,) = grid.sweeps
    assert sweep.cell("adam", 0.1, 0) is grid.control and sweep.cell("adam", 1.0, 2) is grid.cells[1]
    assert sweep.axes == (["adam"], [0.1, 1.0], [0, 2])


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
    control = Cell(None, (40.0, 60.0), (9, 9))
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
    figure = heat_map(hand_made().sweeps[0])
    first, second, _ = figure.axes
    for axes in (first, second):
        np.testing.assert_allclose(axes.images[0].get_array(), [[50, 5, 50], [50, 15, 150]])
        # White, the middle of the colors, is the control.
        assert np.mean(axes.images[0].get_clim()) == pytest.approx(50.0)
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["plain", "adam"]


@pytest.fixture
def guided(tmp_path: Path) -> Path:
    """A policy with a critic, return dropout and the data that it stands for."""
    env = gym.make("Pendulum-v1")
    store = store_for(env)
    store.info = replace(store.info, source=f"store:{tmp_path / 'data'}", env_spec=env.spec)
    store.save(tmp_path / "data")
    model = build_model(store, backbone="decoupled", return_dropout=0.2)
    critic = new_critic(model.spec, hidden=16, seed=0)
    scramble(critic)
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "guided")
    return save_critic(Bundle.open(path), critic.state_dict(), record={"steps": 7})


WAYS: list[WayToAct] = [
    *action_gradients([0.3], [1], ["plain"]),
    *double_checks([4, 8], [0.5], ["max"]),
    *map(Guidance, (0.0, 1.0, 3.0)),
]


def test_ways_stand_side_by_side_on_the_same_episodes(guided: Path, tmp_path: Path) -> None:
    grid = grid_of(guided, ways=WAYS)
    gradients, checks, guidance = grid.sweeps
    assert [len(sweep.cells) for sweep in grid.sweeps] == [1, 2, 2], "guidance 1 is the control"
    assert guidance.axes == ([""], [""], [0.0, 1.0, 3.0]) and guidance.cell("", "", 1.0) is grid.control
    assert checks.axes == (["max"], [0.5], [1, 4, 8]) and gradients.axes[2] == [0, 1]
    options: dict[str, Any] = {"targets": "-500", "episodes_per_target": 2, "env": "Pendulum-v1"}
    for sweep, how in (
        (checks, {"double_check": DoubleCheck(n=8, spread=0.5, mode="max")}),
        (guidance, {"guidance": 3.0}),
    ):
        assert evaluate_bundle(guided, **how, **options).targets[0].returns == sweep.cells[-1].returns
    assert evaluate_bundle(guided, **options).targets[0].returns == grid.control.returns
    assert len({cell.returns for cell in (grid.control, *grid.cells)}) > 3
    page = write_refinement(grid, tmp_path / "page")
    assert {"refinement.png", "double_check.png", "guidance.png"} < {
        each.name for each in page.parent.iterdir()
    }
    ways = [cell["way"] for cell in json.loads((page.parent / "result.json").read_text())["cells"]]
    assert ways == ["action_gradient", *["double_check"] * 2, *["guidance"] * 2]


def test_a_policy_that_is_guided_has_both_as_controls(guided: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(guided)
    acting = bundle.spec.acting(context_length=None, action_selection=None, guidance=2.0)
    path = save_bundle(acting, bundle.model.state_dict(), tmp_path / "strong")
    grid = grid_of(path, ways=[Guidance(2.0), Guidance(4.0)])  # no critic is asked
    assert [cell.settings for cell in grid.cells] == [Guidance(4.0), Guidance(1.0)]
    with pytest.raises(UserError, match=r"every cell of the grid has guidance 1, .* as in 0,1"):
        grid_of(guided, ways=[Guidance(1.0)])
    assert grid.sweeps[0].axes[2] == [1.0, 2.0, 4.0] and grid.sweeps[0].cell("", "", 2.0) is grid.control


@pytest.mark.parametrize("selection", ["sample", "mode"])
def test_a_policy_that_draws_its_actions_draws_the_same_in_each_way(tmp_path: Path, selection: str) -> None:
    """As an evaluation of its own does."""
    model = build_model(store_for(gym.make("CartPole-v1")), backbone="decoupled", return_dropout=0.2)
    acting = model.spec.acting(context_length=None, action_selection=selection)
    weights = {name: 0.3 * value for name, value in model.state_dict().items()}  # hesitates
    path = save_bundle(acting, weights, tmp_path / "policy")
    options: dict[str, Any] = {"env": "CartPole-v1", "episodes": 6, "target": "50"}
    grid = grid_of(path, ways=[*map(Guidance, (0.0, 3.0))], **options)
    seen = []
    for cell in (grid.control, *grid.cells):
        weight = cell.settings.weight if isinstance(cell.settings, Guidance) else None
        alone = evaluate_bundle(path, targets="50", episodes_per_target=6, env="CartPole-v1", guidance=weight)
        assert alone.targets[0].returns == cell.returns
        seen.append(cell.returns)
    assert len(set(seen)) > 1


def test_the_calibration_is_drawn(guided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayrl_dt.critics.calibration._FLAT", -1.0)
    grid = grid_of(guided, ways=double_checks([4], [0.5], ["align"]), episodes=1)
    assert grid.calibration is not None
    axes = calibration_plot(grid.calibration).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), grid.calibration.values)
    assert (np.diff(axes.lines[0].get_ydata()) >= 0).all()
    assert len(axes.collections[0].get_offsets()) == len(grid.calibration.returns)
    assert "calibration.png" in {
        each.name for each in write_refinement(grid, tmp_path / "page").parent.iterdir()
    }


def test_what_a_policy_cannot_do_is_refused_before_it_plays(bundle: Path) -> None:
    played: list[int] = []
    with pytest.raises(UserError, match="never learned to act on no return"):
        grid_of(bundle, ways=[Guidance(2.0)], progress=lambda done, total: played.append(done))
    assert not played
    with pytest.raises(UserError, match="give an n above 1 and a spread above 0"):
        double_checks([1], [0.5], ["align"])
