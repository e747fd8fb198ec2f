"""Model cards of real runs: read as the hub reads them, with the run's own figures, and followed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import build_model
from small_runs import values
from typer.testing import CliRunner

import rayrl_dt
from rayrl_dt.cli.main import app
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.reports.document import number
from rayrl_dt.reports.model_card import write_card
from rayrl_dt.runs import loop
from rayrl_dt.serving.policy import SequencePolicy


@pytest.fixture(scope="module")
def run(ray_session: None, pendulum_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three evaluations; the best one need not be the last."""
    folder = tmp_path_factory.mktemp("card") / "run"
    loop.train(values(pendulum_data), folder)
    return folder


def exported(run: Path, out: Path, *options: str) -> str:
    words = ["export", str(run), "--out", str(out), *options]
    found = CliRunner().invoke(app, words, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return (out / "README.md").read_text()


def front_of(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


@pytest.mark.ray
def test_a_card_publishes_no_numbers_of_other_weights(run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "policy", run / "start")  # as of the policy that a run finetunes
    card = exported(run / "start", tmp_path / "start")
    assert "No evaluation is recorded with these weights" in card and "model-index" not in front_of(card)
    # The earlier checkpoint is neither the best nor the last, and what was measured of it stands in the log alone.
    shutil.copy(run / "evaluations" / "last.json", run / "evaluations" / "best.json")
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    measured = {record["gradient_steps"]: record["evaluation"] for record in records}
    for step in (8, 12):
        card = exported(run / "checkpoints" / f"{step:09d}", tmp_path / f"{step}")
        figures = {
            each["type"]: each["value"] for each in front_of(card)["model-index"][0]["results"][0]["metrics"]
        }
        assert figures["alignment_error"] == pytest.approx(measured[step]["alignment_error"])
        assert f"in {step:,} gradient steps" in card and f"checkpoint, gradient step {step}\n" in card
        # The copy knows what its run knew, and needs it no more.
        assert exported(tmp_path / f"{step}", tmp_path / f"{step} again") == card


@pytest.mark.ray
@pytest.mark.parametrize(("form", "library"), [("bundle", "rayrl_dt"), ("hf", "transformers")])
def test_a_card_holds_the_run_s_numbers(run: Path, tmp_path: Path, form: str, library: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("transformers")
    card = exported(run, tmp_path / "out", "--format", form, "--license", "mit")
    read = hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert read.data.library_name == library and read.data.license == "mit"
    assert {"decision-transformer", "rayrl_dt", "dt", "Pendulum-v1"} <= set(read.data.tags)
    last, best = (json.loads((run / "evaluations" / f"{name}.json").read_text()) for name in ("last", "best"))
    figures = {result.metric_type: result.metric_value for result in read.data.eval_results}
    assert figures["alignment_error"] == pytest.approx(last["alignment_error"])
    top = last["targets"][-1]
    assert figures["mean_reward"] == f"{top['return_mean']:.2f} +/- {top['return_std']:.2f}"
    assert {result.dataset_name for result in read.data.eval_results} == {"Pendulum-v1"}
    for name, result in (("last", last), ("best", best)):
        part = card.split(f"### The {name} checkpoint, gradient step {result['gradient_steps']}\n")[1]
        rows = re.findall(r"^\| (.*) \|$", part.split("\n#")[0], re.MULTILINE)[2:]
        wanted = [
            [number(target[key], 1) for key in ("target", "return_mean", "return_std")] + ["2"]
            for target in result["targets"]
        ]
        assert [row.split(" | ") for row in rows] == wanted
        assert (
            f"| {name}, gradient step {result['gradient_steps']} | {number(result['alignment_error'], 1)} ["
            in card
        )
    # What was there before is there still.
    assert (tmp_path / "out" / "policy.json").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("form", ["bundle", "hf"])
def test_what_a_card_says_to_type_acts(run: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("transformers")
    card = exported(run, tmp_path / "out", "--format", form)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    environment = {**os.environ, "PYTHONPATH": str(Path(rayrl_dt.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"achieved -\d+\n", done.stdout)


@pytest.mark.ray
def test_a_license_that_nobody_stated_is_no_license(run: Path, tmp_path: Path) -> None:
    front = front_of(exported(run, tmp_path / "out"))
    assert front["license"] == "other" and front["license_name"] == "unstated"


def bundle_of(model: Any, folder: Path, **changes: Any) -> Bundle:
    """A bundle whose policy has another specification in some points."""
    spec = replace(model.spec, **changes)
    return Bundle.open(save_bundle(spec, model.state_dict(), folder, gradient_steps=1500))


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def test_a_policy_without_a_run_says_that_nothing_was_measured(tmp_path: Path, make_store: Any) -> None:
    bundle = bundle_of(build_model(make_store()), tmp_path)
    card = write_card(bundle, tmp_path).read_text()
    assert "No evaluation is recorded with these weights" in card and "1,500 gradient steps" in card
    assert "model-index" not in front_of(card)
    compile(code_of(card), "card", "exec")
    assert "policy.spec.env" not in code_of(card) and "policy.reset(target_return=" in card


def test_what_eval_measures_is_on_the_next_card(tmp_path: Path, make_store: Any) -> None:
    bundle = bundle_of(build_model(make_store(actions=2, observation_dim=4)), tmp_path / "here")
    result = tmp_path / "here" / "evaluations" / "last.json"
    words = ["eval", str(bundle.path), "--targets", "5,20", "--episodes", "1", "--env", "CartPole-v1"]
    found = CliRunner().invoke(app, [*words, "--json", str(result)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    card = exported(bundle.path, tmp_path / "there")
    (measured,) = front_of(card)["model-index"][0]["results"]
    error = json.loads(result.read_text())["alignment_error"]
    assert error in [each["value"] for each in measured["metrics"]]
    assert "### The last checkpoint, gradient step 1,500" in card


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"below_return": 0.0}, "`test` (only episodes of returns below 0) in"),
        (
            {"top_percent": 10, "delayed_reward": True},
            "`test` (the best episodes, which make up 10% of the steps, each return paid at its episode's end) in",
        ),
        ({"below_return": None, "delayed_reward": False, "return_balance": 0.5}, "`test` in"),
    ],
    ids=str,
)
def test_a_card_says_what_of_the_data_was_learned(
    tmp_path: Path, make_store: Any, chosen: dict[str, Any], said: str
) -> None:
    model = build_model(make_store())
    folder = save_bundle(model.spec, model.state_dict(), tmp_path, gradient_steps=1500, offline_data=chosen)
    assert (
        f"learned from {said} 1,500 gradient steps" in write_card(Bundle.open(folder), tmp_path).read_text()
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_card_claims_no_more_than_the_policy_does(tmp_path: Path, make_store: Any, backbone: str) -> None:
    bundle = bundle_of(build_model(make_store(), backbone=backbone), tmp_path)
    ignored = bundle.spec.model.target_rule == "predicted"
    target = TargetResult(3.0, (1.0, 2.0), (5, 5))
    result = EvaluationResult((target,), gradient_steps=1500, targets_ignored=ignored)
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "last.json").write_text(json.dumps(result.to_json()))
    card = write_card(bundle, tmp_path).read_text()
    asked = backbone not in ("reinformer", "no-return", "mlp")
    assert ("that is asked for a return" in card) == asked
    assert ("policy.reset(target_return=" in code_of(card)) == asked == ("to ask for" in code_of(card))
    front = front_of(card)
    names = [each["name"] for each in front["model-index"][0]["results"][0]["metrics"]]
    assert names[0] == ("return asked for 3.00" if asked else "return")
    assert ("decision-transformer" in front["tags"]) == BACKBONES[backbone].reads_returns
    (reset,) = re.findall(r"^policy\.reset.*$", code_of(card), re.MULTILINE)
    exec(reset, {"policy": SequencePolicy.load(tmp_path)})


@pytest.mark.parametrize(
    ("name", "sizes", "trusted"), [("Pendulum-v1", (3, 1), True), ("own_envs:Corridor-v0", (2, 1), False)]
)
def test_a_card_acts_where_the_policy_is_evaluated(
    tmp_path: Path,
    make_store: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    sizes: tuple[int, int],
    trusted: bool,
) -> None:
    model = build_model(make_store(observation_dim=sizes[0], action_dim=sizes[1]))
    recorded = RecordedEnv("Gone-v0", "gone:Env", evaluation=RecordedEnv.named(name))
    bundle = bundle_of(model, tmp_path, env=recorded)
    code = code_of(write_card(bundle, tmp_path).read_text())
    assert ("trusting()" not in code) == trusted == ("runs the code of own_envs" not in code)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert re.fullmatch(r"achieved -?\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("form", "entry_point", "extras"),
    [
        ("bundle", "gymnasium.envs.classic_control:PendulumEnv", ""),
        ("hf", "gymnasium.envs.classic_control:PendulumEnv", "[hf]"),
        ("bundle", "ale_py.env:AtariEnv", "[atari]"),
        ("hf", "gymnasium_robotics.envs.maze:PointMazeEnv", "[hf,robotics]"),
    ],
)
def test_a_card_names_what_is_to_be_installed(
    tmp_path: Path, make_store: Any, form: str, entry_point: str, extras: str
) -> None:
    bundle = bundle_of(build_model(make_store()), tmp_path, env=RecordedEnv("Some-v0", entry_point))
    install = f'pip install -e ".{extras}"' if extras else "pip install -e ."
    assert f"(`{install}` in a checkout of it)" in write_card(bundle, tmp_path, form=form).read_text()
    declared = (Path(rayrl_dt.__file__).parents[1] / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in declared for extra in extras.strip("[]").split(",") if extra)
