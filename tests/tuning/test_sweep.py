"""Sweeps with the real Ray Tune: what they leave, and that a killed one goes on without repeating what it had."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from builders import build_model, store_for

from rayrl_dt import SequencePolicy
from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.refinement_grid import action_gradients, evaluate_grid
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import save_critic
from rayrl_dt.reports.overview import Overview
from rayrl_dt.runs.config_files import read_yaml
from rayrl_dt.runs.inputs import locked
from rayrl_dt.tuning import sweep
from rayrl_dt.tuning.conclusion import conclude
from rayrl_dt.tuning.results import best_group, group_trials, read_trials
from rayrl_dt.tuning.sweep import run_sweep
from rayrl_dt.tuning.sweep_spec import SweepSpec, read_sweep
from rayrl_dt.tuning.trial import SweepTrial
from rayrl_dt.types import Trajectory

CONFIGS = Path(__file__).parents[2] / "tune_configs"


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A sweep of seconds over a store of random episodes: 3 gradient steps a report, 2 reports a trial."""
    env = gym.make("Pendulum-v1")
    rng = np.random.default_rng(0)
    episodes = [
        Trajectory(
            rng.normal(size=(21, 3)).astype(np.float32),
            rng.uniform(-2, 2, (20, 1)).astype(np.float32),
            -rng.uniform(0, 8, 20).astype(np.float32),
            terminated=False,
        )
        for _ in range(4)
    ]
    info = DatasetInfo("test", env.observation_space, env.action_space, env.spec)
    TrajectoryStore.from_trajectories(episodes, info).save(tmp_path / "store")
    return {
        "algorithm": "DT",
        "offline_data": {"dataset": f"store:{tmp_path / 'store'}"},
        "rl_module": {"model_config": {"context_length": 3, "embed_dim": 8, "num_layers": 1, "num_heads": 1}},
        "training": {
            "gradient_steps": 6,
            "gradient_steps_per_iteration": 3,
            "train_batch_size_per_learner": 8,
            "lr": {"grid": [1e-3, 1e-2]},
        },
        "evaluation": {"target_returns": "dataset:2", "episodes_per_target": 1},
        "tune": {"seeds": [0, 1]},
    }


def write_trial(folder: Path, lr: float, seed: int, errors: list[float], *, done: bool) -> None:
    """Writes what Ray Tune leaves of a trial, but for checkpoints."""
    folder.mkdir(parents=True)
    config = {"training": {"lr": lr}, "debugging": {"seed": seed}}
    (folder / "params.json").write_text(json.dumps(config))
    lines = [
        {
            "config": config,
            "gradient_steps": 3 * number,
            "time_this_iter_s": 2.0,
            "evaluation": {"alignment_error": error},
            "done": done and number == len(errors),
        }
        for number, error in enumerate(errors, start=1)
    ]
    (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_results_are_read_from_the_folder_and_grouped_over_seeds(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    spec = read_sweep(values, default_name="test")
    out = tmp_path / "out"
    write_trial(out / "a", 1e-3, 0, [9.0, 5.0, 6.0], done=True)
    write_trial(out / "b", 1e-3, 1, [4.0, 8.0], done=True)
    write_trial(out / "c", 1e-2, 0, [1.0], done=False)
    write_trial(out / "d", 1e-2, 1, [], done=False)
    (out / "c" / "error.txt").write_text("killed")
    with (out / "a" / "result.json").open("a") as lines:
        lines.write('{"gradient_st')
    trials = {trial.name: trial for trial in read_trials(out, spec)}
    assert {name: trial.status for name, trial in trials.items()} == {
        "a": "finished",
        "b": "finished",
        "c": "failed",
        "d": "unfinished",
    }
    assert (trials["a"].last, trials["a"].best, trials["a"].seconds) == (6.0, (6, 5.0), 6.0)
    assert trials["d"].last is None and trials["d"].best == (None, None)
    groups = group_trials(list(trials.values()), "min")
    # The better metric is of a trial that died after its first report.
    assert [(group.parameters["training.lr"], group.median) for group in groups] == [(1e-3, 7.0), (1e-2, 1.0)]
    assert [trial.name for trial in groups[0].trials] == ["a", "b"]
    assert best_group(groups) is None, "without a checkpoint there is no policy"
    outcome = conclude(spec, out)
    assert outcome.bundle is None and not outcome.finished and outcome.expected == 4
    page = outcome.page.read_text()
    assert "Trials that did not finish" in page and "c: failed" in page and "No trial has left" in page


@pytest.mark.parametrize(
    ("curves", "median", "seeds"),
    [
        ([[10.0], [12.0], None], 12.0, "3"),
        ([[10.0], [12.0], []], 11.0, "2 of 3"),
        ([[10.0], None, None], None, "3"),
        ([[10.0], [math.nan], [math.nan]], None, "3"),
    ],
    ids=["one failed", "one has not begun", "most failed", "most have no number"],
)
def test_a_seed_that_failed_counts_as_worse_than_any(
    tmp_path: Path, values: dict[str, Any], curves: list[list[float] | None], median: float | None, seeds: str
) -> None:
    """A setting that fails now and then does not win by its survivors; one that is yet to come says nothing."""
    spec, out = read_sweep(values, default_name="test"), tmp_path / "out"
    for seed, curve in enumerate(curves):
        write_trial(out / str(seed), 1e-3, seed, curve or [], done=bool(curve))
        if curve is None:
            (out / str(seed) / "error.txt").write_text("diverged")
    (group,) = group_trials(read_trials(out, spec), "min")
    assert (group.median, group.seeds) == (median, seeds)


def test_a_trial_that_was_started_again_has_not_failed(tmp_path: Path, values: dict[str, Any]) -> None:
    spec, trial = read_sweep(values, default_name="test"), tmp_path / "out" / "a"
    write_trial(trial, 1e-3, 0, [9.0, 5.0], done=False)
    lines = [json.loads(line) | {"timestamp": 1_700_000_000 + 60 * n} for n, line in enumerate(_lines(trial))]
    (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seconds, status in ((30, "unfinished"), (90, "failed")):
        moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(1_700_000_000 + seconds))
        with (trial / "error.txt").open("a") as file:
            file.write(f"Failure # 1 (occurred at {moment})\nkilled\n")
        assert [each.status for each in read_trials(tmp_path / "out", spec)] == [status]
        (standing,) = Overview([tmp_path / "out"]).standings()
        assert standing.state == {"unfinished": "stopped"}.get(status, status)


def test_of_two_checkpoints_of_one_step_the_later_is_what_the_metric_is_of(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    """PBT goes back to another trial's weights, and comes to the step again."""
    spec, out = read_sweep(values, default_name="test"), tmp_path / "out"
    write_trial(out / "a", 1e-3, 0, [9.0, 5.0], done=True)
    model = build_model(store_for(gym.make("Pendulum-v1")))
    for number, step in enumerate((3, 6, 6)):
        folder = out / "a" / f"checkpoint_{number:06d}"
        save_bundle(model.spec, model.state_dict(), folder / "policy", gradient_steps=step)
    (trial,) = read_trials(out, spec)
    assert trial.best_checkpoint == out / "a" / "checkpoint_000002"


def test_what_a_scheduler_stopped_is_compared_where_it_was_stopped(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    """A lucky first report is no better than the last one of a trial that went on; Tune calls both of them done."""
    values["training"]["lr"] = {"grid": [1e-3, 1e-2, 1e-1]}
    spec, out = read_sweep(values, default_name="test"), tmp_path / "out"
    errors = {
        (1e-3, 0): [9.0, 8.0, 7.0, 6.0],
        (1e-3, 1): [9.0, 8.0, 7.0, 5.0],
        (1e-2, 0): [1.0],  # stopped with its first report
        (1e-2, 1): [3.0, 10.0],
        (1e-1, 0): [20.0, 4.0],
        (1e-1, 1): [20.0, 5.0, 6.0, 0.5],  # one seed of two came to its end
    }
    for (lr, seed), curve in errors.items():
        folder = out / f"{lr}-{seed}"
        write_trial(folder, lr, seed, curve, done=True)
        lines = [json.loads(line) for line in _lines(folder)]
        ends = [number == 4 for number in range(1, len(lines) + 1)]
        marked = [line | {"ended": end} for line, end in zip(lines, ends, strict=True)]
        (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in marked))
    trials = read_trials(out, spec)
    assert all(trial.status == "finished" for trial in trials)
    groups = group_trials(trials, "min")
    assert [(group.parameters["training.lr"], group.median) for group in groups] == [
        (1e-3, 5.5),
        (1e-1, 4.5),  # at the second report, which both have
        (1e-2, 2.0),  # at the first one
    ]


@pytest.mark.ray
def test_a_sweep_leaves_a_table_a_page_and_the_best_policy(
    tmp_path: Path, values: dict[str, Any], ray_session: None
) -> None:
    spec = read_sweep(values, default_name="tiny")
    out = tmp_path / "out"
    outcome = run_sweep(spec, out)
    assert outcome.finished and outcome.expected == 4 == len(outcome.trials)
    assert {tuple(trial.parameters.values()) for trial in outcome.trials} == {
        (rate, seed) for rate in (1e-3, 1e-2) for seed in (0, 1)
    }
    assert all([step for step, _ in trial.curve] == [3, 6] for trial in outcome.trials)
    table = json.loads(outcome.table.read_text())
    medians = [setting["median"] for setting in table["settings"]]
    lasts = {row["trial"]: row["last"] for row in table["trials"]}
    assert len(medians) == 2 and medians == sorted(medians)
    assert medians[0] == pytest.approx(np.median([lasts[name] for name in table["settings"][0]["trials"]]))
    assert table["best"]["trial"] in table["settings"][0]["trials"]
    assert outcome.bundle is not None
    assert SequencePolicy.load(outcome.bundle).spec.env is not None
    assert Bundle.open(outcome.bundle).header["gradient_steps"] == table["best"]["best_gradient_steps"]
    page = outcome.page.read_text()
    assert page.count("<svg") == 3 and all(trial.name in page for trial in outcome.trials)
    assert table["best"]["command"] in page.replace("&#x27;", "'")
    cost = table["cost"]
    assert cost["trial_seconds"] == pytest.approx(sum(trial.seconds for trial in outcome.trials))
    assert cost["wall_seconds"] > 0
    assert list(out.glob("*/events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["a[x]", "a#b", "100%"])
def test_a_folder_whose_name_ray_tune_cannot_read_back_is_refused(
    tmp_path: Path, values: dict[str, Any], name: str
) -> None:
    with pytest.raises(UserError, match="Ray Tune would not find the sweep again"):
        run_sweep(read_sweep(values, default_name="tiny"), tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_folder_that_is_taken_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    spec, out = read_sweep(values, default_name="tiny"), tmp_path / "out"
    with pytest.raises(UserError, match="no sweep to resume"):
        run_sweep(spec, out, resume=True)
    out.mkdir()
    (out / "sweep.yaml").write_text("name: other")
    with pytest.raises(UserError, match="exists already; continue it with --resume"):
        run_sweep(spec, out)
    with pytest.raises(UserError, match="a sweep of another config"):
        run_sweep(spec, out, resume=True)
    with (
        locked(out, what="sweep"),
        pytest.raises(UserError, match="a sweep is under way in"),
        locked(out, what="sweep"),
    ):
        pass
    with locked(out, what="sweep"):
        pass  # the lock has ended with the sweep


def test_a_sweep_needs_no_module_that_windows_lacks() -> None:
    script = "import sys; sys.modules['fcntl'] = None; import rayrl_dt.tuning.sweep"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_sweep_of_another_version_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    spec, out = read_sweep(values, default_name="tiny"), tmp_path / "out"
    write_trial(out / "a", 1e-3, 0, [9.0, 5.0], done=True)
    write_trial(out / "b", 1e-3, 1, [4.0], done=False)
    (out / "sweep.yaml").write_text(spec.to_yaml())
    for name in ("tuner.pkl", "experiment_state-1.json"):
        (out / name).touch()
    for trial in ("a", "b"):
        checkpoint = out / trial / "checkpoint_000000" / "algorithm"
        checkpoint.mkdir(parents=True)
        (checkpoint / "class_and_ctor_args.pkl").write_bytes(b"crayrl_dt.algorithms.gone\nDTConfig\n.")
    with pytest.raises(
        UserError, match=r"b/checkpoint_000000.*another version .*cannot be resumed"
    ) as caught:
        run_sweep(spec, out, resume=True)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_critic_is_refused(tmp_path: Path) -> None:
    values = {
        "run": str(tmp_path / "gone"),
        "evaluation": {"action_gradient": {"eta": {"grid": [0.1, 1]}}},
        "tune": {"metric": "evaluation/return_mean"},
    }
    with pytest.raises(UserError, match="gone does not exist"):
        run_sweep(read_sweep(values, default_name="x"), tmp_path / "out")
    model = build_model(store_for(gym.make("Pendulum-v1")))
    save_bundle(model.spec, model.state_dict(), tmp_path / "gone")
    with pytest.raises(UserError, match="has no critic"):
        run_sweep(read_sweep(values, default_name="x"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_action_gradients_are_searched_on_a_checkpoint_that_stays_loaded(
    tmp_path: Path, ray_session: None
) -> None:
    model = build_model(store_for(gym.make("Pendulum-v1")))
    bundle = save_bundle(model.spec, model.state_dict(), tmp_path / "policy", gradient_steps=7)
    save_critic(
        Bundle.open(bundle), new_critic(model.spec, hidden=16, seed=0).state_dict(), record={"steps": 7}
    )
    values = {
        "run": str(bundle),
        "environment": {"env": "Pendulum-v1"},
        "evaluation": {
            "target_returns": [-500],
            "episodes_per_target": 2,
            "action_gradient": {"eta": {"grid": [0.1, 1.0]}, "n": {"grid": [0, 2, 4]}, "rule": "adam"},
        },
        "tune": {"metric": "evaluation/return_mean", "max_concurrent": 1},
    }
    outcome = run_sweep(read_sweep(values, default_name="refining"), tmp_path / "out")
    assert outcome.finished and len(outcome.trials) == 6
    reports = [json.loads(_lines(trial.folder)[0]) for trial in outcome.trials]
    assert len({report["pid"] for report in reports}) == 1, "policy and critic were loaded more than once"
    ways = action_gradients([0.1, 1.0], [2, 4], ["adam"])
    grid = evaluate_grid(bundle, ways, target="-500", episodes=2, env="Pendulum-v1")
    for trial in outcome.trials:
        eta, n = (
            trial.parameters["evaluation.action_gradient.eta"],
            trial.parameters["evaluation.action_gradient.n"],
        )
        assert trial.last == pytest.approx(grid.sweeps[0].cell("adam", eta, n).mean)
        assert trial.unrefined == pytest.approx(grid.control.mean)
    assert outcome.bundle == bundle and outcome.command is not None and str(bundle) in outcome.command
    page = outcome.page.read_text()
    assert "Without" in page and page.count("<svg") == 2


@pytest.mark.ray
def test_a_trial_that_fails_before_its_first_step_is_told_with_the_others(
    tmp_path: Path, values: dict[str, Any], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "check_resources", lambda *_: shutil.rmtree(tmp_path / "store"))
    values["tune"] = {"max_failures": 0}
    outcome = run_sweep(read_sweep(values, default_name="lost"), tmp_path / "out")
    found = [(trial.parameters["training.lr"], trial.status, trial.curve) for trial in outcome.trials]
    assert sorted(found) == [(1e-3, "failed", ()), (1e-2, "failed", ())]
    assert not outcome.finished and outcome.bundle is None
    states = [standing.state for standing in Overview([tmp_path / "out"]).standings()]
    assert states == ["failed", "failed"]


def test_every_shipped_sweep_can_be_scheduled(ray_session: None) -> None:
    """What Ray Tune asks before a trial begins, which RLlib answers with a config for evaluations, too."""
    names = [path.stem for path in CONFIGS.glob("*.yaml") if "tune" in read_yaml(path)]
    assert {"alpha_online", "pbt_online", "radt_offline"} <= set(names)
    for name in names:
        spec = read_sweep(read_yaml(name), default_name=name)
        if spec.run is None:
            for values in spec.corners:
                assert SweepTrial.default_resource_request(values).bundles[0]["CPU"] == 1


def test_a_config_that_cannot_be_built_fails_its_trial_and_not_the_sweep(values: dict[str, Any]) -> None:
    broken = {**values, "training": {"train_batch_size_per_learner": 3.7}}
    assert SweepTrial.default_resource_request(broken).bundles == [{"CPU": 1.0}]


@pytest.mark.ray
def test_what_the_cluster_cannot_hold_is_refused_before_anything_is_scheduled(
    tmp_path: Path, values: dict[str, Any], ray_session: None
) -> None:
    out = tmp_path / "out"
    greedy = {**values, "env_runners": {"num_env_runners": 64}}
    with pytest.raises(UserError, match=r"a trial needs 65 CPU, the cluster has \d+ CPU; lower"):
        run_sweep(read_sweep(greedy, default_name="greedy"), out)
    graphics = {**values, "learners": {"num_learners": 1, "num_gpus_per_learner": 512}}
    with pytest.raises(UserError, match=r"512 GPU on one node, the largest of 1 has .*GPU"):
        run_sweep(read_sweep(graphics, default_name="graphics"), out)
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.parametrize(
    "scheduler",
    [pytest.param("asha", marks=pytest.mark.long), pytest.param("median", marks=pytest.mark.long), "pbt"],
)
def test_schedulers_run_to_the_end(
    tmp_path: Path, values: dict[str, Any], ray_session: None, scheduler: str
) -> None:
    values["training"]["lr"] = {"loguniform": [1e-3, 1e-2]}
    values["tune"] = {"num_samples": 2, "scheduler": scheduler}
    outcome = run_sweep(read_sweep(values, default_name=scheduler), tmp_path / "out")
    assert outcome.finished and len(outcome.trials) == 2 and outcome.bundle is not None
    assert all(1e-3 <= trial.parameters["training.lr"] <= 1e-2 for trial in outcome.trials)


@pytest.mark.ray
def test_a_trial_that_dies_goes_on_from_its_checkpoint(
    tmp_path: Path, values: dict[str, Any], ray_session: None
) -> None:
    reports = 20
    values["training"].update(gradient_steps=3 * reports, lr={"grid": [1e-3]})
    del values["tune"]["seeds"]
    spec, out = read_sweep(values, default_name="dying"), tmp_path / "out"
    killed: list[int] = []
    watcher = threading.Thread(target=_kill_trial, args=(out, 5, killed), daemon=True)
    watcher.start()
    outcome = run_sweep(spec, out)
    watcher.join()
    assert outcome.finished and len(killed) == 1
    (trial,) = outcome.trials
    lines = [json.loads(line) for line in _lines(trial.folder)]
    assert len({line["pid"] for line in lines}) == 2
    assert len(trial.curve) == reports and len(lines) < 5 + reports


def _kill_trial(out: Path, reports: int, killed: list[int]) -> None:
    """Kills the process of the only trial once it has sent some reports."""
    while not killed:
        for result in out.glob("*/result.json"):
            lines = result.read_text().splitlines()
            if len(lines) >= reports:
                killed.append(json.loads(lines[0])["pid"])
                os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.parametrize("kept", [pytest.param("moved", marks=pytest.mark.long), "elsewhere"])
def test_a_killed_and_moved_sweep_goes_on_and_repeats_no_finished_trial(
    tmp_path: Path, values: dict[str, Any], kept: str
) -> None:
    """It has the settings that it began with, those of --set included; its folder moves, or a bucket has it."""
    reports = 20
    values["training"]["gradient_steps"] = 3 * reports
    values["tune"] = {}
    config, out = tmp_path / "tiny.yaml", tmp_path / "bucket" / "out"
    config.write_text(yaml.safe_dump(values))
    spec = read_sweep(values, default_name="tiny")
    tune = [sys.executable, "-m", "rayrl_dt", "tune", str(config), "--out"]
    place = {"moved": str(out), "elsewhere": f"file://{out}"}[kept]
    command = [*tune, place, "--set", "tune.max_concurrent=1"]
    # A Ray of its own, whatever the tests beside this one have started.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    options: dict[str, Any] = {"env": environment, "cwd": tmp_path}
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
    try:
        finished, begun = _wait_for_second_trial(driver, spec, out)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = {name: _lines(out / name) for name in (finished, begun)}
    assert len(before[finished]) == reports
    if kept == "moved":
        out = out.rename(tmp_path / "moved")
        place = str(out)
    else:
        shutil.rmtree(tmp_path / "runs")
        refused = subprocess.run([*tune, place], capture_output=True, text=True, **options)
        assert refused.returncode == 2 and f"{place} exists already; continue it" in refused.stderr
    done = subprocess.run([*tune, place, "--resume"], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    trials = read_trials(out, spec)
    assert {trial.name for trial in trials} == {finished, begun}
    assert all(trial.status == "finished" for trial in trials)
    assert _lines(out / finished) == before[finished]
    # The other trial went on from its checkpoint: not all of its reports came a second time.
    assert _lines(out / begun)[: len(before[begun])] == before[begun]
    assert reports <= len(_lines(out / begun)) < len(before[begun]) + reports
    assert (out / "policy" / "policy.json").exists() and (out / "sweep.html").exists()
    if kept == "elsewhere":
        local = tmp_path / "runs" / "out"
        assert (local / "results.json").read_bytes() == (out / "results.json").read_bytes()
        assert not [*local.rglob("algorithm")], "what trials go on from is not fetched"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("ask", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_asked_to_stop_leaves_its_table_and_goes_on(
    tmp_path: Path, values: dict[str, Any], ask: signal.Signals
) -> None:
    values["training"]["gradient_steps"] = 60
    values["tune"] = {}
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(values))
    spec = read_sweep(values, default_name="tiny")
    command = [sys.executable, "-m", "rayrl_dt", "tune", str(config), "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        # The shell of the tests may have had SIGHUP ignored, as nohup does.
        driver = subprocess.Popen(
            [*command, "--set", "tune.max_concurrent=1"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
    try:
        finished, begun = _wait_for_second_trial(driver, spec, out)
        driver.send_signal(ask)
        status = driver.wait(timeout=300)
    finally:
        driver.kill()
    said = log.read_text()
    assert status == 1 and "Traceback" not in said and "--resume" in said, (status, said[-3000:])
    assert "! 1 of 2 trials finished" in said and "✓" not in said
    table = json.loads((out / "results.json").read_text())
    assert {trial["trial"]: trial["status"] for trial in table["trials"]} == {
        finished: "finished",
        begun: "unfinished",
    }
    assert (out / "policy" / "policy.json").exists() and (out / "sweep.html").exists()
    before = _lines(out / finished)
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert all(trial.status == "finished" for trial in read_trials(out, spec))
    assert _lines(out / finished) == before


def _wait_for_second_trial(driver: subprocess.Popen[bytes], spec: SweepSpec, out: Path) -> tuple[str, str]:
    """Waits until one trial is finished and the other has left checkpoints; returns their names in that order."""
    while driver.poll() is None:
        trials = read_trials(out, spec) if out.exists() else []
        finished = [trial.name for trial in trials if trial.status == "finished"]
        begun = [trial.name for trial in trials if trial.status == "unfinished" and len(trial.curve) >= 5]
        if finished and begun:
            return finished[0], begun[0]
        time.sleep(0.05)
    raise AssertionError(
        f"the sweep ended before it could be killed: {(out.parent / 'log').read_text()[-3000:]}"
    )


def _lines(trial: Path) -> list[str]:
    return (trial / "result.json").read_text().splitlines()
