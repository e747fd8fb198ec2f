"""Run folders: what a run writes, how it is stopped, killed and resumed."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from ray.exceptions import RayTaskError
from safetensors.numpy import load_file
from small_runs import StopAt, values

from rayrl_dt import DT, SequencePolicy, UserError
from rayrl_dt.cli import train as command
from rayrl_dt.critics.training import CriticTraining
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import add_critic
from rayrl_dt.reports.run_report import write_report
from rayrl_dt.runs import loop as runs
from rayrl_dt.runs.checkpoints import checkpoints, latest_checkpoint, writing
from rayrl_dt.runs.config_files import build_config, read_yaml
from rayrl_dt.runs.interrupts import on_interrupt
from rayrl_dt.runs.records import checkpoint_score
from rayrl_dt.runs.run_log import RunLog

pytestmark = pytest.mark.ray


def weights(folder: Path) -> dict[str, Any]:
    return load_file(str(folder / "policy" / "policy.safetensors"))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


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
    for resume in (False, True):
        with pytest.raises(UserError, match=r"is no run .*choose another --out"):
            runs.train(values(pendulum_data), folder, resume=resume)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="nothing to resume; start it without --resume"):
        runs.train(values(pendulum_data), tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([], r"is no run .*choose another --out"),
        ([".lock", "run.json"], r"holds \.git-credentials, which no run has written; choose another --out"),
    ],
    ids=["a folder of configs", "where a run was lost"],
)
def test_nothing_that_no_run_wrote_is_touched(
    ray_session: None, pendulum_data: str, tmp_path: Path, marks: list[str], message: str
) -> None:
    """`--out .` in a project with a `config.yaml` of its own."""
    folder = tmp_path / "project"
    for name in ("start", ".venv-py311"):
        (folder / name).mkdir(parents=True)
    for name in (".git-credentials", "config.yaml", "critic", "events.md", *marks):
        (folder / name).write_text("# mine")
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(UserError, match=message):
        runs.train(values(pendulum_data), folder)
    assert {path.name for path in folder.iterdir()} == before
    assert (folder / "config.yaml").read_text() == "# mine"


def test_a_run_that_was_lost_before_its_first_checkpoint_starts_over(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    class Lost(StopAt):
        def stepped(self, gradient_step: int, loss: float) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        runs.train(values(pendulum_data), folder, observer=Lost(0))
    assert latest_checkpoint(folder) is None
    # Either with its first settings, or anew with those that mend what was wrong with them.
    with pytest.raises(MemoryError):
        runs.train(values(pendulum_data), folder, resume=True, observer=Lost(0))
    assert runs.train(values(pendulum_data, gradient_steps=4), folder).gradient_steps == 4
    with pytest.raises(UserError, match="exists already; continue it with --resume"):
        runs.train(values(pendulum_data), folder)


def test_a_folder_has_one_run_at_a_time_and_loses_what_a_kill_left(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    rests = [folder / "checkpoints" / ".000000004-0123456789ab", folder / ".policy-0123456789ab"]
    made: list[Path] = []  # by RLlib, in ~/ray_results

    class Watches(StopAt):
        def started(self, algorithm: Any) -> None:
            super().started(algorithm)
            made.append(Path(algorithm.logdir))
            assert made[-1].exists()

    class Intrudes(Watches):
        def stepped(self, gradient_step: int, loss: float) -> None:
            if gradient_step == 4:
                for rest in rests:
                    rest.mkdir(parents=True)
            elif gradient_step == 6:
                for resume in (False, True):
                    with pytest.raises(UserError, match=r"a run is under way in .*; wait for its end"):
                        runs.train(values(pendulum_data, gradient_steps=6), folder, resume=resume)
                raise MemoryError

    quiet = {**values(pendulum_data), "evaluation": {"target_returns": "dataset:3"}}
    with pytest.raises(MemoryError):
        runs.train(quiet, folder, observer=Intrudes(0))
    assert all(rest.exists() for rest in rests)
    runs.train(quiet, folder, observer=Watches(0))
    assert not any(rest.exists() for rest in rests)
    assert len(made) == 2 and not any(each.exists() for each in made)


@pytest.mark.parametrize("ask", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_comes_between_two_iterations_saves_a_checkpoint(
    ray_session: None, pendulum_data: str, tmp_path: Path, ask: signal.Signals
) -> None:
    class Between(StopAt):
        def iterated(self, record: Mapping[str, Any]) -> None:
            signal.raise_signal(ask)

    never = {**values(pendulum_data), "evaluation": {"target_returns": "dataset:3", "episodes_per_target": 2}}
    before = signal.signal(ask, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        outcome = runs.train(never, tmp_path / "run", observer=Between(-1))
    finally:
        signal.signal(ask, before)
    assert (outcome.finished, outcome.gradient_steps) == (False, 4)
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "000000004"


def test_under_nohup_a_run_outlives_its_terminal() -> None:
    asked: list[bool] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_interrupt(lambda: asked.append(True)):
            signal.raise_signal(signal.SIGHUP)
            assert not asked
            signal.raise_signal(signal.SIGTERM)
        assert asked == [True] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_checkpoints_do_not_wait_for_an_evaluation(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    never = {**values(pendulum_data), "evaluation": {"target_returns": "dataset:3", "episodes_per_target": 2}}
    kept: dict[float, list[list[str]]] = {}

    class Looks(StopAt):
        def iterated(self, record: Mapping[str, Any]) -> None:
            seen.append([path.name for path in checkpoints(folder)])

    for minutes in (0.0, 60.0):
        folder, seen = tmp_path / str(minutes), kept.setdefault(minutes, [])
        runs.train(never, folder, checkpoint_minutes=minutes, observer=Looks(-1))
    assert [names[-1] for names in kept[0.0]] == ["000000004", "000000008", "000000012"]
    assert kept[60.0] == [[], [], ["000000012"]]
    with pytest.raises(UserError, match="checkpoint_minutes is -1"):
        runs.train(never, tmp_path / "bad", checkpoint_minutes=-1)


def test_only_numbers_name_checkpoints(tmp_path: Path) -> None:
    for name in ("000000004", "000000004-online", "4", "000000012"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["000000004", "000000012"]


@pytest.mark.parametrize(
    ("error", "returns", "score"),
    [(5.0, [-130.0], -130.0), (2.0, [-148.0], -148.0), (5.0, [1.0, 2.0], -5.0), (None, [7.0], 7.0)],
)
def test_the_best_of_one_target_has_the_highest_return(
    error: float | None, returns: list[float], score: float
) -> None:
    evaluation = {"alignment_error": error, "targets": [{"return_mean": value} for value in returns]}
    assert checkpoint_score(evaluation) == score


def test_the_best_is_among_evaluations_of_the_same_targets(tmp_path: Path) -> None:
    """A run of one target that is resumed with two: a return of 3,000 is no score to beat with an error."""

    def evaluated(*pairs: tuple[float, float]) -> str:
        targets = [{"target": asked, "return_mean": achieved} for asked, achieved in pairs]
        error = float(np.mean([abs(asked - achieved) for asked, achieved in pairs]))
        log = RunLog(tmp_path, 0, command=None)
        log._keep_evaluation({"alignment_error": error, "targets": targets}, tmp_path / "checkpoints/1")
        log.close()
        return (tmp_path / "evaluations/best.json").read_text()

    first = evaluated((2500.0, 3000.0))
    assert evaluated((2500.0, 2000.0)) == first
    second = evaluated((1000.0, 900.0), (2500.0, 2400.0))
    assert second != first
    assert evaluated((1000.0, 500.0), (2500.0, 2400.0)) == second
    assert evaluated((1000.0, 1000.0), (2500.0, 2400.0)) != second


@pytest.mark.parametrize("name", ["dT", "dTConfig"])
def test_a_checkpoint_whose_classes_moved_is_refused(
    ray_session: None, pendulum_data: str, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), folder)
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    classes = checkpoint / "class_and_ctor_args.pkl"
    whole = classes.read_bytes()
    path = {"dT": b"rayrl_dt.algorithms.dt", "dTConfig": b"DTConfig"}[name]
    assert path in whole
    classes.write_bytes(whole.replace(path, path[: -len(name)] + name.encode()))
    before = (folder / "config.yaml").read_text()
    message = r"written by another version of rayrl_dt \(.*\) and cannot be resumed"
    for refused in (
        lambda: runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True),
        lambda: DT.from_checkpoint(str(checkpoint)),
        lambda: DT.from_checkpoint(checkpoint),
    ):
        with pytest.raises(UserError, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert (folder / "config.yaml").read_text() == before
    assert SequencePolicy.load(folder).spec.model.backbone == "dt"


def test_a_refused_resume_changes_nothing_of_a_run(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    """Nor does one that finds the run done already: its records say what it learned from."""
    folder = tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), folder)
    before = {name: (folder / name).read_text() for name in ("config.yaml", "run.json", "metrics.jsonl")}
    wider = values(pendulum_data, gradient_steps=8)
    wider["rl_module"] = {"model_config": {**wider["rl_module"]["model_config"], "embed_dim": 24}}
    with pytest.raises(UserError, match="embed_dim is 24"):
        runs.train(wider, folder, resume=True)
    done = runs.train(values(pendulum_data, gradient_steps=2, lr=1.0), folder, resume=True)
    assert done.gradient_steps == 4
    assert {name: (folder / name).read_text() for name in before} == before
    assert runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True).gradient_steps == 8


@pytest.mark.parametrize("lost", ["algorithm_state.pkl", "policy"])
def test_a_damaged_checkpoint_is_named_with_the_one_before_it(
    ray_session: None, pendulum_data: str, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), folder)
    runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True)
    newest = latest_checkpoint(folder)
    assert newest is not None and newest.name == "000000008"
    path = newest / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = r"000000008 is damaged .*; delete it, and --resume goes on from 000000004"
    with pytest.raises(UserError, match=message) as caught:
        runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True)
    assert "\n" not in str(caught.value)
    shutil.rmtree(newest)
    assert runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True).gradient_steps == 8


def test_interrupted_and_resumed_equals_uninterrupted(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.train(values(pendulum_data), whole)
    outcome = runs.train(values(pendulum_data), broken, command="first", observer=StopAt(6))
    assert not outcome.finished and outcome.gradient_steps == 6
    begun = json.loads((broken / "run.json").read_text())
    assert (begun["command"], begun["resumed"]) == ("first", [])
    assert latest_checkpoint(broken) == broken / "checkpoints" / "000000006"
    outcome = runs.train(values(pendulum_data), broken, resume=True, command="again")
    assert outcome.finished
    record = json.loads((broken / "run.json").read_text())
    assert (record["command"], record["created"]) == ("first", begun["created"])
    assert [(part["command"], part["gradient_steps"]) for part in record["resumed"]] == [("again", 6)]
    assert same(weights(whole), weights(broken))
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [line["gradient_steps"] for line in lines] == [4, 6, 10, 12]


def test_a_run_that_trains_on_keeps_its_critic(ray_session: None, pendulum_data: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), folder)
    add_critic(folder, training=CriticTraining(steps=5, batch_size=8, hidden=8), seed=3)
    critic, before = Bundle.open(folder).critic.state_dict(), weights(folder)
    runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True)
    assert not same(before, weights(folder))
    for place in (folder, folder / "checkpoints" / "000000008"):
        header = Bundle.open(place).header
        assert (header["critic"]["seed"], header["gradient_steps"]) == (3, 8)
        again = Bundle.open(place).critic.state_dict()
        assert all(np.array_equal(critic[name], again[name]) for name in critic)


def test_a_run_that_goes_on_with_more_data_keeps_the_units_that_it_learned_in(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    """Weights hold their normalizer: a header that named another would be believed by critics and by finetuning."""
    folder, quiet = tmp_path / "run", {"target_returns": "-900", "episodes_per_target": 1}
    settings = {**values(pendulum_data, gradient_steps=4, objective="q_align"), "evaluation": quiet}
    less = {**settings, "offline_data": {"dataset": pendulum_data, "below_return": -900}}
    runs.train(less, folder)
    before = Bundle.open(folder).spec
    settings["training"]["gradient_steps"] = 8
    runs.train(settings, folder, resume=True)
    after = Bundle.open(folder)
    assert after.spec.data_returns["max"] > before.data_returns["max"]
    for name in ("mean", "std"):
        kept = getattr(after.spec.normalizer, name)
        np.testing.assert_array_equal(kept, getattr(before.normalizer, name))
        np.testing.assert_array_equal(kept, getattr(after.model, f"observation_{name}"))
    assert after.critic_for(before) is not None, "it has the fingerprint of that normalizer"


def test_a_run_keeps_the_critic_that_its_objective_asks(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    judge, folder = tmp_path / "judge", tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), judge)
    add_critic(judge, training=CriticTraining(steps=5, batch_size=8, hidden=8), seed=3)
    runs.train(values(pendulum_data, gradient_steps=4, objective="pg", critic_from=str(judge)), folder)
    for place in (folder, folder / "checkpoints" / "000000004"):
        bundle = Bundle.open(place)
        assert bundle.header["critic"] == Bundle.open(judge).header["critic"]
        assert same(bundle.critic.state_dict(), Bundle.open(judge).critic.state_dict())


def test_a_checkpoint_that_failed_half_way_is_not_taken_for_one(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    """Files of this process cannot grow beyond a size, as on a disk without room for more."""
    folder = tmp_path / "run"
    runs.train(values(pendulum_data, gradient_steps=4), folder)
    before = weights(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(StopAt):
        def stepped(self, gradient_step: int, loss: float) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.step, limits[1]))

    for size in (100, 8_000):  # of RLlib's own files, and of the bundle's
        try:
            with pytest.raises(UserError, match=r"could not be written \(.*File too large.*--resume"):
                runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True, observer=Fills(size))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(folder.glob(".policy-*")) and not list(folder.glob("checkpoints/.*"))
    assert [path.name for path in checkpoints(folder)] == ["000000004"]
    assert same(before, weights(folder))
    assert runs.train(values(pendulum_data, gradient_steps=8), folder, resume=True).gradient_steps == 8


def test_a_disk_that_is_full_for_another_process_is_one_line(tmp_path: Path) -> None:
    """The replay's, whose error comes with the traceback of that process."""
    full = OSError(errno.ENOSPC, "No space left on device", "replay.npz")
    raised = RayTaskError("ask", "Traceback (most recent call last):\n  File x\nOSError", full)
    message = r"replay could not be written \(No space left on device\); .* --resume$"
    with pytest.raises(UserError, match=message) as caught, writing(tmp_path / "replay"):
        raise raised.as_instanceof_cause()
    assert "\n" not in str(caught.value)


def test_a_run_that_cannot_write_its_settings_is_one_line_and_leaves_the_place_free(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"config.yaml could not be written \(File too large\); make room"
        ):
            runs.train(values(pendulum_data, gradient_steps=4), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert runs.train(values(pendulum_data, gradient_steps=4), tmp_path / "run").gradient_steps == 4


def test_a_tensorboard_file_that_does_not_fit_on_the_disk_ends_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom rayrl_dt.runs.run_log import RunLog\n"
        "log = RunLog(Path(sys.argv[1]), 0, command=None)\n"
        "limits = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "log._to_tensorboard({'gradient_steps': 4, 'loss': 1.0})\n"
        "log._tensorboard._py_recordio_writer.write(b'more')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))\n"
        "log.close()\nprint('closed')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(4, 1.0)]


@pytest.mark.parametrize(
    ("asked", "names"),
    [((-1503.17, -150.2), ["-1503", "-150"]), ((0.05, 0.2, 0.35, 1.0), ["0.05", "0.2", "0.35", "1"])],
)
def test_each_target_has_a_curve_of_its_own_in_tensorboard(
    tmp_path: Path, asked: tuple[float, ...], names: list[str]
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    targets = [{"target": target, "return_mean": 2.0 * target} for target in asked]
    log = RunLog(tmp_path, 0, command=None)
    log._to_tensorboard({"gradient_steps": 4, "evaluation": {"targets": targets}})
    log.close()
    read = accumulator.EventAccumulator(str(tmp_path)).Reload()
    for name, target in zip(names, asked, strict=True):
        (event,) = read.Scalars(f"evaluation/return_at_target_{name}")
        assert event.value == pytest.approx(2.0 * target)


@pytest.mark.timeout(1500)
def test_a_killed_process_resumes_to_the_same_weights(
    joining_ray: dict[str, str], pendulum_data: str, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = values(pendulum_data, gradient_steps=300, gradient_steps_per_iteration=30)
    runs.train(config, whole)
    script = (
        "import sys, json\nfrom pathlib import Path\nfrom rayrl_dt.runs.loop import train\n"
        "train(json.loads(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", script, json.dumps(config), str(killed)]
    process = subprocess.Popen(command, env=joining_ray)
    while latest_checkpoint(killed) is None and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    reached = latest_checkpoint(killed)
    assert reached is not None and int(reached.name) < 300
    runs.train(config, killed, resume=True)
    assert same(weights(whole), weights(killed))


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("times", "status"), [(1, 1), (2, 130)])
def test_a_stopped_command_says_so_by_its_status(
    joining_ray: dict[str, str], pendulum_data: str, tmp_path: Path, times: int, status: int
) -> None:
    """One Ctrl-C saves a checkpoint and ends with 1, a second one interrupts even that, with 130."""
    config, folder = tmp_path / "long.yaml", tmp_path / "run"
    settings = values(pendulum_data, gradient_steps=10**6)
    # The first iteration is watched, the second has no end of its own within the test.
    script = (
        # A shell that starts the tests in the background has Ctrl-C ignored.
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from rayrl_dt.algorithms.algorithm import SequenceAlgorithm as A\n"
        "ask = A.stop_when\n"
        f"A.stop_when = lambda self, asked: ask(self, asked) if {times} == 1 else None\n"
        f"A.observe_steps = A.observe_steps if {times} == 1 else lambda self, observer: None\n"
        "from rayrl_dt.cli import main\nmain()"
    )
    settings["training"]["gradient_steps_per_iteration"] = 100_000
    config.write_text(yaml.safe_dump(settings))
    arguments = ["train", str(config), "--out", str(folder)]
    with subprocess.Popen([sys.executable, "-c", script, *arguments], env=joining_ray) as process:
        while not (folder / "run.json").exists() and process.poll() is None:
            time.sleep(0.05)
        for _ in range(times):
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
        assert process.wait() == status
    assert (latest_checkpoint(folder) is not None) == (times == 1)


def test_finetune_goes_on_from_a_run_and_resumes(
    ray_session: None, pendulum_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune = command.finetune
    offline = {**values(pendulum_data), "evaluation": {"target_returns": "-900", "episodes_per_target": 1}}
    offline["offline_data"]["below_return"] = -900
    source = runs.train(offline, tmp_path / "dt").folder
    small = [
        "online.pretrain_steps=2",
        "online.updates_per_iteration=2",
        "online.env_steps_per_iteration=200",
    ]
    small += ["evaluation.target_returns=-900", "evaluation.episodes_per_target=1"]
    file = tmp_path / "online.yaml"
    file.write_text("algorithm: OnlineDT\nrl_module: {model_config: {embed_dim: 8}}")
    settings: dict[str, Any] = {"config": file, "out": None}
    newest = source / "checkpoints" / "000000012"
    copy = Bundle.open(newest).copy_to(tmp_path / "copy")
    assert Bundle.open(copy).header["offline_data"]["below_return"] == -900
    data = command._finetune_settings(copy, None)["offline_data"]
    assert (data["dataset"], data["below_return"], data["delayed_reward"]) == (pendulum_data, -900, False)
    finetune(newest, overrides=small, env_steps=200, resume=False, seed=3, **settings)
    folder = tmp_path / "dt-online"
    assert [path.name for path in checkpoints(source)][-1] == "000000012"
    kept = read_yaml(folder / "config.yaml")
    assert kept["offline_data"] == {"dataset": pendulum_data, "below_return": -900}
    assert "environment" not in kept, "the policy knows it"
    info = json.loads((folder / "run.json").read_text())
    assert (info["algorithm"], info["seed"], info["dataset"]) == ("OnlineDT", 3, pendulum_data)
    assert info["env"] == "Pendulum-v1"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in records] == ["pretraining", "online"]
    assert [record["done"] for record in records] == [False, True]
    assert records[-1]["env_steps"] == 200 and records[-1]["replay_episodes"] > 0
    assert {"critic_loss", "q_mean", "bc_loss", "update_to_data"} <= records[-1].keys()
    # The start is kept, so that the source may go.
    shutil.rmtree(source)
    again: dict[str, Any] = {
        **settings,
        "out": str(folder),
        "overrides": None,
        "env_steps": 400,
        "resume": True,
    }
    with pytest.raises(UserError, match=r"--seed is 4, and the run in .* started with 3"):
        finetune(source, **again, seed=4)
    with pytest.raises(UserError, match=r"--set online.start_from is for a new run: .* keeps a copy"):
        finetune(source, **{**again, "overrides": ["online.start_from=other"]})
    capsys.readouterr()
    finetune(source, **{**again, "overrides": small})
    assert "has others" not in capsys.readouterr().out
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["env_steps"] for record in records] == [0, 200, 400]
    file.write_text("algorithm: OnlineDT\ntraining: {lr: 0.5}")
    finetune(source, **{**again, "overrides": small})
    told = " ".join(capsys.readouterr().out.split())
    assert f"also where {file} has others: training.lr is unset (there 0.5); change" in told
    command.train(folder, overrides=["online.env_steps=600"], out=None, resume=True)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["env_steps"], last["phase"]) == (600, "online")


def test_a_run_is_interrupted_while_it_collects(
    ray_session: None, pendulum_data: str, tmp_path: Path
) -> None:
    class Interrupts(StopAt):
        def iterated(self, record: Mapping[str, Any]) -> None:
            if record["phase"] == "pretraining":
                threading.Timer(1.0, signal.raise_signal, (signal.SIGINT,)).start()

    folder, online = tmp_path / "run", {"pretrain_steps": 2, "updates_per_iteration": 2, "env_steps": 200}
    config = {
        **values(pendulum_data),
        "algorithm": "OnlineDT",
        "training": {"train_batch_size_per_learner": 8},
        "online": {**online, "env_steps_per_iteration": 10**6},
        "evaluation": {"target_returns": "-900", "episodes_per_target": 1, "evaluation_interval": 2},
    }
    outcome = runs.train(config, folder, observer=Interrupts(-1))
    assert not outcome.finished and outcome.gradient_steps == 2
    assert latest_checkpoint(folder) == folder / "checkpoints" / "000000002"
    config["online"] = {**online, "env_steps": 600, "env_steps_per_iteration": 200}
    runs.train(config, folder, resume=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(record["iteration"], record["env_steps"]) for record in records[1:]] == [
        (2, 200),
        (3, 400),
        (4, 600),
    ]
    # The one that was stopped is none: the second and the fourth are evaluated, as without it.
    assert ["evaluation" in record for record in records[1:]] == [True, False, True]


def test_a_resumed_run_keeps_the_settings_of_its_command(
    ray_session: None,
    pendulum_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupted(command.TrainingProgress):
        def stepped(self, gradient_step: int, loss: float) -> None:
            if gradient_step == 6:
                signal.raise_signal(signal.SIGINT)

    file, folder = tmp_path / "dt.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(values(pendulum_data)))
    settings: dict[str, Any] = {"out": str(folder), "resume": False}
    with monkeypatch.context() as patch, pytest.raises(typer.Exit) as stopped:
        patch.setattr(command, "TrainingProgress", Interrupted)
        command.train(file, overrides=["training.lr=1e-5"], seed=5, **settings)
    assert stopped.value.exit_code == 1
    file.write_text("algorithm: BC")
    with pytest.raises(UserError, match=r"--seed is 6, and the run in .* started with 5"):
        command.train(file, overrides=None, seed=6, **{**settings, "resume": True})
    with pytest.raises(UserError, match=r"--set debugging.seed is 6, and the run in .* started with 5"):
        command.train(file, overrides=["debugging.seed=6"], seed=5, **{**settings, "resume": True})
    capsys.readouterr()
    command.train(file, overrides=["training.gradient_steps=8"], **{**settings, "resume": True})
    told = " ".join(capsys.readouterr().out.split())
    assert f"also where {file} has others: algorithm is DT (there BC), " in told
    assert (
        "more; change them with --set" in told
        and "gradient_steps is" not in told
        and "finished before" not in told
    )
    kept = read_yaml(folder / "config.yaml")
    assert (kept["algorithm"], kept["debugging"]["seed"]) == ("DT", 5)
    assert (kept["training"]["lr"], kept["training"]["gradient_steps"]) == (1e-5, 8)
    assert latest_checkpoint(folder) == folder / "checkpoints" / "000000008"
    file.write_text(yaml.safe_dump(kept))
    command.train(file, overrides=None, **{**settings, "resume": True})
    told = capsys.readouterr().out
    assert "it was finished before: 8 gradient steps" in told and "has others" not in told
    # The folder alone will do.
    command.train(folder, overrides=["training.gradient_steps=10"], out=None, resume=True)
    assert latest_checkpoint(folder) == folder / "checkpoints" / "000000010"
    with pytest.raises(
        UserError, match=r"is a run folder: continue it with --resume, or .*config.yaml --out"
    ):
        command.train(folder, overrides=None, out=None, resume=False)
