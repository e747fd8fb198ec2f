"""`rayrl-dt experiment`: what it prints, where it writes, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from rayrl_dt.experiments import action_bandit, return_critic, shortest_path, vitamin_bandit

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same for an experiment, on little data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shortest_path, "WALKS", 60)
    monkeypatch.setattr(return_critic, "WALKS", 50)
    monkeypatch.setattr(return_critic, "HELD_OUT", 350)
    monkeypatch.setattr(action_bandit, "SEEDS", 2)
    return partial(run, "experiment")


def test_help_shows_examples(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0 and "shortest-path" in out and "critic" in out
    assert "vitamin-bandit" in out
    for command in ("shortest-path", "critic", "vitamin-bandit", "action-gradient"):
        status, out, _ = run(command, "--help")
        assert status == 0 and f"rayrl-dt experiment {command} --seed" in out


@pytest.mark.parametrize(
    ("command", "pictures", "said"),
    [
        ("shortest-path", ["steps.png"], ["random walks", "% of the generated paths are absent"]),
        ("critic", ["attention.png", "success.png"], ["no key", "success", "door"]),
        ("action-gradient", ["actions.png"], ["DT", "TP", "PG", "AG", "best reward in the data 0.7"]),
    ],
)
def test_an_experiment_says_where_its_output_is(
    run: Run, tmp_path: Path, command: str, pictures: list[str], said: list[str]
) -> None:
    folder = tmp_path / "mine" / "here"
    status, out, err = run(command, "--steps", "2", "--seed", "3", "--out", str(folder))
    assert status == 0, err
    assert str(folder / "report.html") in out and all(text in out for text in said)
    wanted = [*pictures, "report.html", "report.md", "result.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(wanted)
    result = json.loads((folder / "result.json").read_text())
    assert (result["experiment"], result["seed"], result["gradient_steps"]) == (command, 3, 2)


@pytest.mark.parametrize("command", ["shortest-path", "critic", "action-gradient"])
def test_without_a_folder_it_writes_beside_the_runs(run: Run, tmp_path: Path, command: str) -> None:
    assert run(command, "--steps", "1")[0] == 0
    assert (tmp_path / "runs" / f"{command}-seed0" / "report.html").exists()


@pytest.mark.parametrize("command", ["shortest-path", "critic", "action-gradient"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0"), "--steps is 0; it must be a whole number of at least 1"),
        (("--out", "taken"), "choose another --out"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Run, tmp_path: Path, command: str, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    status, _, err = run(command, *arguments)
    assert status == 2
    assert err.startswith("error: ") and message in err and len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_bandit_counts_successes(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "bandit"
    status, out, err = run(
        "vitamin-bandit", "--epochs", "2", "--seeds", "3", "--seed", "5", "--out", str(folder)
    )
    assert status == 0, err
    assert str(folder / "report.html") in out and "2 epochs" in out
    assert all(f"{method.name} " in out for method in vitamin_bandit.METHODS) and "0 / 3" in out
    result = json.loads((folder / "result.json").read_text())
    assert (result["seed"], result["seeds"], result["online_epochs"]) == (5, 3, 2)


@pytest.mark.parametrize("option", ["--epochs", "--seeds"])
def test_the_bandit_refuses_to_do_nothing(run: Run, tmp_path: Path, option: str) -> None:
    status, _, err = run("vitamin-bandit", option, "0")
    assert status == 2 and f"{option} is 0; it must be a whole number of at least 1" in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_experiment_is_refused(run: Run) -> None:
    status, _, err = run("longest-path")
    assert status == 2 and "longest-path" in err
