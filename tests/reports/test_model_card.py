"""Model cards of real runs: read as the hub reads them, with the run's own figures, and followed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import build_model
from small_runs import values
from typer.testing import CliRunner

import rayrl_dt
from rayrl_dt.cli.main import app
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.reports.document import number
from rayrl_dt.reports.model_card import write_card
from rayrl_dt.runs import loop


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
    shutil.copytree(run / "policy", run / "start")  # as of the policy that a run finetunes
    card = exported(run / "start", tmp_path / "start")
    shutil.rmtree(run / "start")
    assert "No evaluation is recorded with these weights" in card and "model-index" not in front_of(card)
    last, best = (json.loads((run / "evaluations" / f"{name}.json").read_text()) for name in ("last", "best"))
    for checkpoint in sorted((run / "checkpoints").iterdir()):
        card = exported(checkpoint, tmp_path / checkpoint.name)
        whole = int(checkpoint.name) == last["gradient_steps"]
        measured = last if whole else best if int(checkpoint.name) == best["gradient_steps"] else None
        if measured is None:
            assert "No evaluation is recorded with these weights" in card and "model-index" not in front_of(
                card
            )
            continue
        figures = {
            each["type"]: each["value"] for each in front_of(card)["model-index"][0]["results"][0]["metrics"]
        }
        assert figures["alignment_error"] == pytest.approx(measured["alignment_error"])
        assert f"in {int(checkpoint.name):,} gradient steps" in card


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


def test_a_policy_without_a_run_says_that_nothing_was_measured(tmp_path: Path, make_store: Any) -> None:
    model = build_model(make_store())
    bundle = Bundle.open(save_bundle(model.spec, model.state_dict(), tmp_path, gradient_steps=1500))
    card = write_card(bundle, tmp_path).read_text()
    assert "No evaluation is recorded with these weights" in card and "1,500 gradient steps" in card
    assert "model-index" not in front_of(card)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(code, "card", "exec")
    assert "policy.spec.env" not in code and "policy.reset(target_return=" in code
