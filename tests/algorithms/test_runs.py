"""Run folders: what a run writes, how it is stopped, killed and resumed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from rayrl_dt import SequencePolicy, UserError, run_checkpoints, runs
from rayrl_dt.config_files import build_config, read_yaml
from rayrl_dt.critic.training import CriticTraining
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.evaluation.report import write_report
from rayrl_dt.interop.bundle import read_header
from rayrl_dt.interop.critics import add_critic, load_critic
from rayrl_dt.run_checkpoints import checkpoints, latest_checkpoint

pytestmark = pytest.mark.ray


def values(dataset: str, **training: Any) -> dict[str, Any]:
    settings = {"gradient_steps": 12, "gradient_steps_per_iteration": 4, "train_batch_size_per_learner": 8}
    return {
        "algorithm": "DT",
        "offline_data": {"dataset": dataset},
        "rl_module": {"model_config": {"context_length": 4, "embed_dim": 16, "num_layers": 1}},
        "training": {**settings, **training},
        "evaluation": {"target_returns": "dataset:3", "episodes_per_target": 2, "evaluation_interval": 1},
    }


def weights(folder: Path) -> dict[str, Any]:
    return load_file(str(folder / "policy" / "policy.safetensors"))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class StopAt:
    """An observer that presses Ctrl-C at a gradient step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, algorithm: Any) -> None:
        pass

    def stepped(self, gradient_step: int, loss: float) -> None:
        if gradient_step == self.step:
            signal.raise_signal(signal.SIGINT)

    def iterated(self, record: Mapping[str, Any]) -> None:
        pass


def test_a_run_writes_what_others_read(ray_session: None, pendulum_data: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = runs.train(values(pendulum_data), folder, command="rayrl-dt train x.yaml")
    assert outcome.finished and outcome.gradient_steps == 12
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["gradient_steps"] for line in lines] == [4, 8, 12]
    assert all("evaluation" in line for line in lines)
    last = json.loads((folder / "evaluations" / "last.json").read_text())
    best = json.loads((folder / "evaluations" / "best.json").read_text())
    assert last["gradient_steps"] == 12
    errors = [line["evaluation"]["alignment_error"] for line in lines]
    assert best["alignment_error"] == min(errors) and last["alignment_error"] == errors[-1]
    run = json.loads((folder / "run.json").read_text())
    assert run["env"] == "Pendulum-v1" and run["command"] == "rayrl-dt train x.yaml" and run["parameters"] > 0
    # The resolved config is itself a config.
    again = yaml.safe_load((folder / "config.yaml").read_text())
    assert build_config(again).gradient_steps == 12
    assert list(folder.glob("events.*"))
    kept = {path.name for path in checkpoints(folder)}
    assert {"000000008", "000000012", Path(best["checkpoint"]).name} == kept | {Path(best["checkpoint"]).name}
    policy = SequencePolicy.load(folder)
    policy.reset(-500.0)
    assert policy.act(np.zeros(3, np.float32)).shape == (1,)
    assert write_report([folder], tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("data", "selection", "otherwise"),
    [
        ("pendulum_data", "auto", {"context_length": 4}),
        ("cartpole_data", "mode", {"action_selection": "sample"}),
        ("cartpole_data", "auto", {"action_selection": "mode"}),
    ],
)
def test_a_policy_is_evaluated_later_as_in_its_training(
    ray_session: None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    data: str,
    selection: str,
    otherwise: dict[str, Any],
) -> None:
    given = values(request.getfixturevalue(data), gradient_steps=4)
    given["evaluation"] |= {
        "target_returns": "5,20",
        "episodes_per_target": 3,
        "action_selection": selection,
        "evaluation_context_length": 2,
    }
    runs.train(given, tmp_path / "run")
    last = json.loads((tmp_path / "run" / "evaluations" / "last.json").read_text())

    def again(**how: Any) -> list[list[float]]:
        result = evaluate_bundle(tmp_path / "run", targets="5,20", episodes_per_target=3, **how)
        return [list(target.returns) for target in result.targets]

    assert again() == [target["returns"] for target in last["targets"]] != again(**otherwise)


def test_a_taken_folder_is_refused_and_left_alone(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--resume or choose another --out"):
        runs.train(values(pendulum_data), folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        runs.train(values(pendulum_data), folder, resume=True)


def test_interrupted_and_resumed_equals_uninterrupted(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.train(values(pendulum_data), whole)
    outcome = runs.train(values(pendulum_data), broken, observer=StopAt(6))
    assert not outcome.finished and outcome.gradient_steps == 6
    assert latest_checkpoint(broken) == broken / "checkpoints" / "000000006"
    outcome = runs.train(values(pendulum_data), broken, resume=True)
    assert outcome.finished
    assert same(weights(whole), weights(broken))
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [line["gradient_steps"] for line in lines] == [4, 6, 10, 12]


def test_a_run_that_trains_on_keeps_its_critic(ray_session: None, pendulum_data: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), folder)
    add_critic(folder, training=CriticTraining(steps=5, batch_size=8, hidden=8), seed=3)
    critic, before = load_critic(folder).state_dict(), weights(folder)
    runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True)
    assert not same(before, weights(folder))
    for place in (folder, folder / "checkpoints" / "000000008"):
        header = read_header(place)
        assert (header["critic"]["seed"], header["gradient_steps"]) == (3, 8)
        again = load_critic(place).state_dict()
        assert all(np.array_equal(critic[name], again[name]) for name in critic)


def test_a_checkpoint_that_failed_half_way_is_not_taken_for_one(
    ray_session: None, pendulum_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), folder)
    before = weights(folder)

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_checkpoints, "save_bundle", full_disk)
    with pytest.raises(UserError, match=r"could not be written \(No space left.*--resume"):
        runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(folder)] == ["000000004"]
    assert same(before, weights(folder))
    assert runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True).gradient_steps == 8


@pytest.mark.timeout(590)
def test_a_killed_process_resumes_to_the_same_weights(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = values(pendulum_data, gradient_steps=300, gradient_steps_per_iteration=30)
    runs.train(config, whole)
    script = (
        "import sys, json\nfrom pathlib import Path\nfrom rayrl_dt import runs\n"
        "runs.train(json.loads(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps(config), str(killed)])
    deadline = time.monotonic() + 200
    while latest_checkpoint(killed) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    reached = latest_checkpoint(killed)
    assert reached is not None and int(reached.name) < 300
    runs.train(config, killed, resume=True)
    assert same(weights(whole), weights(killed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainin": {}}, "unknown section 'trainin'. Did you mean 'training'"),
        ({"training": {"learning_rate": 1}}, "training has no key 'learning_rate'"),
        ({"training": {"gradient_step": 1}}, "Did you mean 'gradient_steps'"),
        ({"algorithm": "DTT"}, "Did you mean 'DT'"),
        ({"training": {"lr": {"loguniform": [1e-5, 1e-3]}}}, "training.lr is a search space"),
        ({"training": 3}, "must be a mapping"),
        ({"offline_data": {}}, "no data set is given"),
    ],
)
def test_config_files_are_checked(change: dict[str, Any], message: str) -> None:
    config = {"algorithm": "DT", "offline_data": {"dataset": "recipe:pendulum-mixed"}, **change}
    with pytest.raises(UserError, match=message):
        build_config(config)


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must hold a mapping"):
        read_yaml(tmp_path / "list.yaml")


def test_finetune_goes_on_from_a_run_and_resumes(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    from rayrl_dt.cli.training import finetune

    offline = {**values(pendulum_data), "evaluation": {"target_returns": "-900", "episodes_per_target": 1}}
    source = runs.train(offline, tmp_path / "dt").folder
    small = [
        "online.pretrain_steps=2",
        "online.updates_per_iteration=2",
        "online.env_steps_per_iteration=200",
    ]
    small += ["evaluation.target_returns=-900", "evaluation.episodes_per_target=1"]
    settings: dict[str, Any] = {"config": None, "out": tmp_path / "online", "seed": 3}
    finetune(source, overrides=small, env_steps=200, resume=False, **settings)
    folder = tmp_path / "online"
    info = json.loads((folder / "run.json").read_text())
    assert (info["algorithm"], info["seed"], info["dataset"]) == ("OnlineDT", 3, pendulum_data)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in records] == ["pretraining", "online"]
    assert records[-1]["env_steps"] == 200 and records[-1]["replay_episodes"] > 0
    assert {"critic_loss", "q_mean", "bc_loss", "update_to_data"} <= records[-1].keys()
    # The start is kept, so that the source may go.
    shutil.rmtree(source)
    finetune(source, overrides=None, env_steps=400, resume=True, **settings)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["env_steps"] for record in records] == [0, 200, 400]
