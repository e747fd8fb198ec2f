"""The one-state toy: what the data allow, what the critic adds (methods: section 7)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayrl_dt.experiments import action_bandit
from rayrl_dt.experiments.action_bandit import METHODS, expectile_of, reward_of, run, run_seed


@pytest.fixture(scope="module")
def outcomes() -> list[action_bandit.Outcome]:
    return [run_seed(seed, steps=1_000) for seed in (0, 1)]


def rewards(outcomes: list[action_bandit.Outcome], name: str) -> np.ndarray:
    return reward_of(np.array([outcome.actions[name] for outcome in outcomes]))


@pytest.mark.slow
def test_following_returns_ends_at_the_datas_best(outcomes: list[action_bandit.Outcome]) -> None:
    for outcome in outcomes:
        assert 0.74 < outcome.best < 0.75
    dt, tp = rewards(outcomes, "DT"), rewards(outcomes, "TP")
    assert (dt > 0.7).all() and (dt < 0.77).all()
    assert (tp > 0.6).all() and (tp < 0.77).all()


def test_a_critic_goes_beyond_it(outcomes: list[action_bandit.Outcome]) -> None:
    assert (rewards(outcomes, "AG") > 0.85).all()
    assert (rewards(outcomes, "PG") > 0.85).all()
    assert all(outcome.gain > 0 for outcome in outcomes)


def test_more_steps_climb_past_the_best_action(outcomes: list[action_bandit.Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.actions[action_bandit.FARTHER] < outcome.actions["AG"] < outcome.actions["DT"]
    assert rewards(outcomes, action_bandit.FARTHER).mean() < rewards(outcomes, "AG").mean()


@pytest.mark.slow
def test_the_critic_fits_the_reward_where_there_are_data(outcomes: list[action_bandit.Outcome]) -> None:
    grid = np.linspace(-1, 1, 101)
    inside = grid > 0.55
    for outcome in outcomes:
        error = np.abs(np.array(outcome.critic) - reward_of(grid))
        assert error[inside].max() < 0.05 < error[~inside].max()


def test_a_seed_is_a_function_of_its_number(outcomes: list[action_bandit.Outcome]) -> None:
    few = [run_seed(seed, steps=3) for seed in (5, 5, 6)]
    assert few[0] == few[1] != few[2]


def test_expectiles_of_a_sample() -> None:
    values = np.array([0.0, 1.0, 4.0])
    assert expectile_of(values, 0.5) == pytest.approx(5 / 3)
    assert expectile_of(values, 0.7) == pytest.approx(31 / 13)
    assert 3.9 < expectile_of(values, 0.99) < 4.0


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_bandit, "SEEDS", 2)
    seen: list[tuple[int, int]] = []
    result = run(tmp_path, seed=4, steps=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert json.loads((tmp_path / "result.json").read_text()) == result
    alone = [run_seed(seed, steps=3) for seed in (4, 5)]
    for name in METHODS:
        assert result["methods"][name]["actions"] == [outcome.actions[name] for outcome in alone]
    text = (tmp_path / "report.html").read_text()
    assert "Seeds 4 to 5" in text and "data:image/png" in text
