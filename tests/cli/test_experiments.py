"""`rayrl-dt experiment`: what it prints, where it writes, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from builders import build_model, store_for

from rayrl_dt.data.sources import load
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.experiments import action_bandit, align_offline, return_critic, shortest_path, vitamin_bandit
from rayrl_dt.interop.bundle import save_bundle

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
    folder = Path("runs", f"{command}-seed0")
    assert (folder / "report.html").exists()
    before = (folder / "result.json").read_bytes()
    status, _, err = run(command, "--steps", "2")
    assert status == 2 and len(err.strip().splitlines()) == 1
    assert f"{folder} holds a result with gradient_steps 1 and not 2; choose another --out" in err
    assert (folder / "result.json").read_bytes() == before


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
    status, _, err = run(
        "vitamin-bandit", "--epochs", "3", "--seeds", "3", "--seed", "5", "--out", str(folder)
    )
    assert status == 2 and "online_epochs 2 and not 3; choose another --out" in err


@pytest.mark.parametrize("option", ["--epochs", "--seeds"])
def test_the_bandit_refuses_to_do_nothing(run: Run, tmp_path: Path, option: str) -> None:
    status, _, err = run("vitamin-bandit", option, "0")
    assert status == 2 and f"{option} is 0; it must be a whole number of at least 1" in err
    assert list(tmp_path.iterdir()) == []


def policy(folder: Path, *, seed: int = 0, known: bool = True, **config: Any) -> str:
    """Write an untrained policy of Pendulum, with data of its own beside it, and return its path."""
    env = gym.make("Pendulum-v1")
    made = store_for(env, seed=seed)
    spec = env.spec if known else None
    info = DatasetInfo(f"store:{folder}-data", env.observation_space, env.action_space, spec)
    store = TrajectoryStore.from_trajectories(map(made.trajectory, range(made.num_episodes)), info)
    store.save(f"{folder}-data")
    model = build_model(store, **config)
    return str(save_bundle(model.spec, model.state_dict(), folder, gradient_steps=7))


def test_runs_are_judged_on_their_own_data(run: Run, tmp_path: Path) -> None:
    names = [policy(tmp_path / name, seed=seed, context_length=1) for seed, name in enumerate("ab")]
    runs = [word for name in names for word in ("--run", name)]
    shared = ("align-offline", *runs, "--episodes", "1")
    status, out, err = run(*shared, "--steps", "1")
    assert status == 0, err
    assert "the estimate" in out and str(Path("runs", "align-offline-seed0", "report.html")) in out
    result = json.loads(Path("runs", "align-offline-seed0", "result.json").read_text())
    assert list(result["policies"]) == result["runs"] == names
    for name, row in result["policies"].items():
        mean = load(f"store:{name}-data").episode_returns.mean()
        assert (row["gradient_steps"], row["dataset"]) == (7, f"store:{name}-data")
        assert row["data_mean"] == pytest.approx(mean)
    status, _, err = run(*shared, "--steps", "2")
    assert status == 2 and "holds a result with steps 1 and not 2" in err


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        ({"backbone": "mlp"}, (), "backbone mlp, head deterministic and target rule"),
        ({"known": False}, (), "is not recorded; name one with --env"),
        ({}, ("--dataset", "store:hopper"), "name data of the policy's own task with --dataset"),
        ({}, ("--env", "Hopper-v5"), "observations"),
    ],
)
def test_a_run_is_refused_before_another_is_judged(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: dict[str, Any],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(align_offline, "fit_evaluation", None)
    names = policy(tmp_path / "good"), policy(tmp_path / "bad", **second)
    store_for(gym.make("Hopper-v5")).save("hopper")
    status, _, err = run("align-offline", *(word for name in names for word in ("--run", name)), *options)
    assert status == 2 and len(err.strip().splitlines()) == 1 and message in err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_experiment_is_refused(run: Run) -> None:
    status, _, err = run("longest-path")
    assert status == 2 and "longest-path" in err
