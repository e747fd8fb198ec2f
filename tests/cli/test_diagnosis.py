"""`rayrl-dt diagnose`: what it prints, where it writes, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
from builders import build_model, store_for

from rayrl_dt.data.store import DatasetInfo
from rayrl_dt.diagnosis import cost
from rayrl_dt.interop.bundle import save_bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same with costs measured as shortly as can be."""
    monkeypatch.setattr(cost, "measure", partial(cost.measure, repeats=1, seconds=0.0))
    return run


@pytest.fixture
def policies(tmp_path: Path) -> list[str]:
    """Two untrained policies of Pendulum with episodes of 10 steps, and their data."""
    env = gym.make("Pendulum-v1", max_episode_steps=10)
    store = store_for(env, episodes=4)
    store.info = DatasetInfo(f"store:{tmp_path / 'data'}", env.observation_space, env.action_space, env.spec)
    store.save(tmp_path / "data")
    found = []
    for backbone in ("dt", "radt"):
        model = build_model(store, backbone=backbone)
        save_bundle(model.spec, model.state_dict(), tmp_path / backbone / "policy", gradient_steps=3)
        found.append(str(tmp_path / backbone))
    return found


@pytest.mark.slow
def test_help_has_an_example(run: Run) -> None:
    status, text, _ = run("diagnose", "--help")
    assert status == 0 and "rayrl-dt diagnose runs/dt" in text
    for option in ("--targets", "--episodes", "--windows", "--dataset", "--out", "--json", "--seed"):
        assert option in text
    assert "diagnose" in run("--help")[1]


def test_diagnose_writes_a_page_and_figures_and_says_where(
    run: Run, policies: list[str], tmp_path: Path
) -> None:
    out, file = tmp_path / "page", tmp_path / "new/figures.json"
    arguments = ("--targets=-60,-20", "--episodes", "2", "--windows", "4", "--seed", "7")
    status, text, err = run("diagnose", *policies, *arguments, "--out", str(out), "--json", str(file))
    assert status == 0, err
    assert text.strip().splitlines()[-1].endswith(str(out / "diagnosis.html"))
    assert (out / "diagnosis.html").exists() and str(file) in text
    values = json.loads(file.read_text())
    assert (values["windows"], values["episodes"], values["seed"]) == (4, 2, 7)
    assert [[course["target"] for course in each["courses"]] for each in values["policies"]] == [
        [-60, -20]
    ] * 2
    for each in values["policies"]:
        assert f"{each['sensitivity']['values'][4]:.3f}" in text
        assert f"{each['attention']['return_share']:.3f}" in text
        assert [len(course["lengths"]) for course in each["courses"]] == [2, 2]


def test_the_page_lies_in_the_first_run_unless_told_otherwise(run: Run, policies: list[str]) -> None:
    status, text, err = run("diagnose", policies[1], "--episodes", "0", "--windows", "2")
    assert status == 0, err
    assert text.rstrip().endswith(f"next: rayrl-dt export {policies[1]} --out runs/radt-policy")
    assert (Path(policies[1]) / "diagnosis/diagnosis.html").exists()


def test_remarks_are_printed(run: Run, policies: list[str]) -> None:
    status, text, _ = run("diagnose", policies[0], "--targets", "1e6", "--episodes", "1", "--windows", "2")
    assert status == 0 and "! dt: target 1e+06 lies outside" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "does not exist"),
        (("{dt}", "--windows", "0"), "at least 1 window"),
        (("{dt}", "--episodes", "-1"), "episodes"),
        (("{dt}", "--targets", "many"), "targets"),
        (("{dt}", "--dataset", "store:nowhere"), "--dataset"),
        (("{dt}", "--env", "CartPole-v1"), "observations"),
        (("{dt}", "--out", "{dt}/policy/policy.json"), "choose another --out"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Run, policies: list[str], arguments: tuple[str, ...], message: str
) -> None:
    before = sorted(Path(policies[0]).rglob("*"))
    status, _, err = run("diagnose", *(argument.format(dt=policies[0]) for argument in arguments))
    assert status == 2
    assert err.startswith("error: ") and message in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert sorted(Path(policies[0]).rglob("*")) == before, "nothing is written"
