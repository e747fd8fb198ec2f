"""The command line: what it prints, where it writes, how it fails."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from builders import EVALUATION_KEYS
from safetensors.torch import load_file

from rayrl_dt.cli import app
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec

CONFIGS = Path(__file__).parents[2] / "tune_configs"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(make_store: Callable[..., TrajectoryStore], tmp_path: Path) -> Path:
    """An untrained policy for Pendulum-v1."""
    return pendulum_policy(make_store, tmp_path / "policy")


def pendulum_policy(make_store: Callable[..., TrajectoryStore], path: Path, **model: Any) -> Path:
    """Saves an untrained policy for Pendulum-v1."""
    import gymnasium as gym

    env = gym.make("Pendulum-v1")
    store = make_store(observation_dim=3, action_dim=1)
    info = store.info.__class__("test", env.observation_space, env.action_space, env.spec)
    store.info = info
    torch.manual_seed(0)
    config = ModelConfig(context_length=4, embed_dim=8, num_layers=1, **model)
    spec = PolicySpec.from_store(config, store, return_scale=1000.0)
    return save_bundle(spec, SequenceModel(spec).state_dict(), path, gradient_steps=0)


def commands() -> dict[str, Any]:
    """Every command by what a user types for it, those of groups included."""

    def below(group: Any, typed: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, f"{typed} {name}")
            else:
                yield f"{typed} {name}", command

    return dict(below(typer.main.get_command(app), "rayrl-dt"))


@pytest.mark.parametrize("typed", commands())
def test_every_help_is_whole_phrases_with_an_example(run: Run, typed: str) -> None:
    status, text, _ = run(*typed.split()[1:], "--help")
    assert status == 0 and re.search(rf"Examples?:\s+{typed}", text)
    command = commands()[typed]
    summary = str(command.help).splitlines()[0]
    assert summary[0].isupper() and summary.endswith((".", ")."))
    for parameter in command.params:
        phrase = str(getattr(parameter, "help", None))
        assert len(phrase.split()) >= 3, f"{parameter.name}: {phrase!r} explains nothing"
        assert phrase[0].isupper() and phrase.endswith("."), (
            f"{parameter.name}: {phrase!r} is no whole phrase"
        )


@pytest.mark.parametrize(
    "typed",
    [
        "quickstart --out",
        "report run --out",
        "export run --out",
        "import folder --out",
        "act run --out",
        "align file --out",
        "diagnose run --out",
        "refine run --out",
        "data preview data --out",
        "experiment critic --out",
        "configs copy dt --to",
        "eval run --json",
        "eval run --video",
    ],
)
def test_a_uri_is_not_taken_for_a_folder_of_that_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*typed.split(), "s3://bucket/a")
    assert status == 2 and f"{typed.split()[-1]} is s3://bucket/a, a URI: name a path on this machine" in err
    assert list(tmp_path.iterdir()) == []


def test_the_help_lists_every_command(run: Run) -> None:
    status, text, _ = run("--help")
    assert status == 0 and all(typed.split()[1] in text for typed in commands())


def test_version_is_one_line(run: Run) -> None:
    status, out, _ = run("--version")
    assert status == 0
    names = {"rayrl_dt": version("rayrl_dt"), "python": platform.python_version()}
    names |= {"torch": version("torch"), "ray": version("ray")}
    assert out == ", ".join(" ".join(pair) for pair in names.items()) + "\n"


def test_eval_writes_the_contract(run: Run, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    status, out, err = run(
        "eval", str(bundle), "--targets=-1200,-300", "--episodes", "2", "--json", str(file)
    )
    assert status == 0, err
    assert "alignment error" in out and out.rstrip().endswith(str(file))
    result = json.loads(file.read_text())
    assert result.keys() >= EVALUATION_KEYS
    assert [(t["target"], t["episodes"]) for t in result["targets"]] == [(-1200.0, 2), (-300.0, 2)]
    assert result["env"] == "Pendulum-v1" and result["env_steps"] == 800
    assert {"target", "return_mean", "return_std", "length_mean", "episodes"} <= result["targets"][0].keys()


@pytest.mark.slow
def test_eval_of_a_policy_that_predicts_its_returns_says_so(
    run: Run, make_store: Callable[..., TrajectoryStore], tmp_path: Path
) -> None:
    policy = pendulum_policy(make_store, tmp_path / "policy", backbone="reinformer")
    status, out, err = run("eval", str(policy), "--targets=-1200,-300", "--episodes", "2")
    assert status == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert [row[-1] for row in rows if row and row[0] == "nothing"] == ["2"]
    assert out.rstrip().endswith(f"next: rayrl-dt diagnose {policy}")
    assert "predicts its own returns" in out and "there is no alignment error" in out
    assert "alignment error" not in out.replace("no alignment error", "")


def test_eval_of_the_same_seed_is_the_same(run: Run, bundle: Path, tmp_path: Path) -> None:
    results = []
    for name, *more in (
        ("a", "3"),
        ("b", "3", "--context-length", "4"),
        ("c", "4"),
        ("d", "3", "--context-length", "1"),
    ):
        file = tmp_path / f"{name}.json"
        arguments = ("eval", str(bundle), "--targets=-500", "--episodes", "1", "--seed", *more)
        assert run(*arguments, "--json", str(file))[0] == 0
        results.append(json.loads(file.read_text())["targets"][0]["returns"])
    assert results[0] == results[1] and results[0] not in results[2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "nowhere"), "does not exist"),
        (("eval", "{bundle}", "--targets", "many"), "targets"),
        (("eval", "{bundle}", "--episodes", "0"), "at least 1"),
        (("eval", "{bundle}", "--action-selection", "best"), "Allowed: mode, sample"),
        (("eval", "{bundle}", "--context-length", "5"), "from 1 to 4"),
        (("eval", "{bundle}", "--env", "Pendulum-v7"), "Pendulum"),
        (("eval", "{bundle}", "--env", "CartPole-v1"), "observations"),
        (("train", "absent.yaml"), "cannot read"),
        (("finetune", "nowhere"), "does not exist"),
        (("align", "absent.yaml"), "cannot read"),
        (("tune", "absent.yaml"), "cannot read"),
        (("tune", str(CONFIGS / "dt_pendulum.yaml")), "section tune"),
        (("tune", str(CONFIGS / "smoke.yaml"), "--samples", "0"), "num_samples"),
        (("tune", str(CONFIGS / "smoke.yaml"), "--resume", "--out", "{bundle}"), "no sweep to resume"),
        (("tune", str(CONFIGS / "smoke.yaml"), "--out", "{bundle}"), "exists already"),
        (("align", "absent.yaml", "--seeds", "one"), "--seeds"),
        (("export", "{bundle}", "--out", "{bundle}"), "not empty"),
        (("export", "{bundle}", "--out", "x", "--format", "bundel"), "Did you mean 'bundle'"),
        (
            ("export", "{bundle}", "--out", "x", "--format", "onnx", "--license", "mit"),
            "--license is 'mit', and --format onnx has no model card",
        ),
        (("import", "{bundle}", "--out", "x", "--return-scale", "0"), "--return-scale is 0.0; it must be"),
        (("import", "{bundle}", "--out", "x", "--context-length", "0"), "--context-length is 0; it must be"),
        (("import", "{bundle}", "--out", "x", "--actions", "row"), "--actions is 'row'. Did you mean 'raw'?"),
        (("report", "nowhere"), "nowhere"),
        (("data", "preview", "minari:no/such-v0"), "no/such-v0"),
        (("data", "preview", "minary:no/such-v0"), "minari"),
        (("data", "make", "pendulum-mixt"), "Did you mean 'pendulum-mixed'"),
        # What the console would take for markup.
        (("data", "preview", "minari:[/]"), "[/]"),
        (("data", "import", "d4rl:[/]", "--as", "a/b-v0"), "[/]"),
        (("data", "make", "[/]"), "[/]"),
        (("watch", "[/]"), "[/]"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*(argument.format(bundle=bundle) for argument in arguments))
    assert status == 2
    assert err.startswith("error: ") and message in err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_train_refuses_unknown_keys_and_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"algorithm": "DT", "offline_data": {"dataset": "recipe:pendulum-mixed"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    status, _, err = run("train", "c.yaml", "--set", "training.gradient_step=3")
    assert status == 2 and "Did you mean 'gradient_steps'" in err
    status, _, err = run("train", "c.yaml", "--set", "training.lr")
    assert status == 2 and "section.key=value" in err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_export_bundle_and_hugging_face(run: Run, bundle: Path, tmp_path: Path) -> None:
    assert run("export", str(bundle), "--out", str(tmp_path / "copy"))[0] == 0
    assert (tmp_path / "copy" / "policy.safetensors").exists()
    pytest.importorskip("transformers")
    assert run("export", str(bundle), "--format", "hf", "--out", str(tmp_path / "hf"))[0] == 0
    assert (tmp_path / "hf" / "config.json").exists()


def test_a_hugging_face_checkpoint_comes_back_and_evaluates(
    run: Run, bundle: Path, pendulum_data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("transformers")
    theirs, out = tmp_path / "hf", tmp_path / "back"
    assert run("export", str(bundle), "--format", "hf", "--out", str(theirs))[0] == 0
    status, _, err = run("import", str(theirs), "--return-scale", "1000", "--out", str(out))
    assert status == 2 and "policy.json says what return_scale would say; leave them out" in err
    assert run("import", str(theirs), "--out", str(out))[0] == 0
    weights = [load_file(place / "policy.safetensors") for place in (bundle, out)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # As from elsewhere: nothing but the network is known, and the data say the rest.
    (theirs / "policy.json").unlink()
    status, _, err = run("import", str(theirs), "--out", str(tmp_path / "other"))
    assert status == 2 and "holds neither observation statistics nor a return scale" in err
    options = ("--dataset", pendulum_data, "--return-scale", "1000", "--context-length", "4")
    assert run("import", str(theirs), *options, "--out", str(tmp_path / "other"))[0] == 0
    assert caplog.text.count("--actions scaled") == 1, "the torque goes from -2 to 2"
    for actions, bound in (("raw", 1.0), ("scaled", 2.0)):
        folder = tmp_path / actions
        assert run("import", str(theirs), *options, "--actions", actions, "--out", str(folder))[0] == 0
        assert Bundle.open(folder).spec.action_high == (bound,)
    ours = Bundle.open(tmp_path / "other").spec
    assert (ours.return_scale, ours.model.context_length, ours.dataset) == (1000.0, 4, pendulum_data)
    assert ours.env is not None and ours.env.id == "Pendulum-v1"
    assert run("eval", str(tmp_path / "other"), "--targets=-900", "--episodes", "1")[0] == 0


def test_data_make_list_preview(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = run("data", "make", "key-to-door-1k", "--episodes", "20")
    assert status == 0, err
    assert "minari:rayrl_dt/key-to-door/random-1k-v0" in out
    status, out, _ = run("data", "list")
    assert status == 0 and "rayrl_dt/key-to-door/random-1k-v0" in out
    picture = tmp_path / "walks.png"
    status, out, _ = run("data", "preview", "recipe:key-to-door-1k", "--out", str(picture))
    assert status == 0 and "episodes" in out and picture.stat().st_size > 10_000
    assert "--dataset recipe:key-to-door-1k --out runs/dt-key-to-door-1k" in out
    status, _, err = run("data", "make", "key-to-door-1k", "--episodes", "20")
    assert status == 2 and "overwrite" in err
    monkeypatch.chdir(tmp_path)
    assert run("data", "preview", "recipe:key-to-door-1k")[0] == 0
    assert (tmp_path / "runs" / "previews" / "recipe-key-to-door-1k.png").exists()


@pytest.mark.parametrize("command", [("train", "dt.yaml"), ("tune", "smoke.yaml")])
def test_a_data_source_is_an_option(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    status, _, err = run(*command, "--dataset", "minary:x", "--out", str(tmp_path / "out"))
    assert status == 2 and "unknown prefix 'minary' of the source 'minary:x'" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", sorted(Path("tune_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_builds(file: Path, tmp_path: Path) -> None:
    from rayrl_dt.runs.config_files import read_yaml
    from rayrl_dt.tuning.suite_runs import read_suite
    from rayrl_dt.tuning.sweep_spec import read_sweep

    values = read_yaml(file)
    if "tune" in values:
        assert read_sweep(values, default_name=file.stem).spaces
        return
    assert len(read_suite([file], tmp_path)) == len(values.get("variants", [None]))


def test_importing_the_command_line_is_quick() -> None:
    """`rayrl-dt --help` must not wait for Ray or torch."""
    script = "import sys, rayrl_dt.cli; sys.exit(any(name in sys.modules for name in ('ray', 'torch')))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("algorithm", ["DT", "RADT"])
def test_the_quickstart_trains_its_config_files(algorithm: str) -> None:
    from rayrl_dt.runs.config_files import build_config, read_yaml
    from rayrl_dt.runs.quickstart import CONFIG, METHODS

    assert algorithm in METHODS
    file = read_yaml(f"tune_configs/{algorithm.lower()}_pendulum.yaml")
    assert build_config(file).to_dict() == build_config({"algorithm": algorithm, **CONFIG}).to_dict()


def test_a_resume_without_its_seed_is_told_where_the_run_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dt-seed1", "dt-seed1-online", "dt-wide-seed2"):
        begun = tmp_path / "runs" / name
        begun.mkdir(parents=True)
        (begun / "config.yaml").write_text("algorithm: DT")
        (begun / "run.json").write_text("{}")
    status, _, err = run("train", str(CONFIGS / "dt.yaml"), "--resume")
    assert status == 2 and "runs/dt-seed0 has nothing to resume, runs/dt-seed1 has; add its --seed, or" in err


def test_a_quickstart_goes_on_with_its_seed_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "radt").mkdir()
    (tmp_path / "radt" / "config.yaml").write_text("debugging: {seed: 3}")
    (tmp_path / "radt" / "run.json").write_text("{}")
    status, _, err = run("quickstart", "--out", str(tmp_path), "--seed", "1")
    assert status == 2 and f"--seed is 1, and {tmp_path}/radt was begun with 3; give --seed 3, or" in err
    assert [path.name for path in tmp_path.iterdir()] == ["radt"]


@pytest.mark.ray
@pytest.mark.long
def test_a_stopped_quickstart_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-m", "rayrl_dt", "quickstart", "--out", str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell that starts the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (out / "dt" / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert process.returncode == 1
    assert f"! stopped; checkpoints saved in {out}" in said and "✓ report" not in said
    assert f"next: rayrl-dt quickstart --out {out} --seed 0" in said
    assert list((out / "dt" / "checkpoints").iterdir())


def test_brackets_in_a_message_are_not_markup(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayrl_dt import doctor
    from rayrl_dt.errors import UserError

    def refuse(**_: Any) -> Any:
        raise UserError("needs the extra: pip install 'rayrl_dt[hf]'")

    monkeypatch.setattr(doctor, "diagnose", refuse)
    assert "rayrl_dt[hf]" in run("doctor")[2]
    check = doctor.Check("extra hf", "warning", "missing [x]", "pip install 'rayrl_dt[hf]'")
    monkeypatch.setattr(doctor, "diagnose", lambda **_: [check])
    out = run("doctor")[1]
    assert "missing [x]" in out and "rayrl_dt[hf]" in out


def test_a_full_disk_is_one_line(run: Run, tmp_path: Path) -> None:
    """Files of this process cannot grow beyond a size, as on a disk without room for more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status, _, err = run("configs", "copy", "smoke", "--to", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2 and "File too large; make room" in err and err.count("\n") == 1, err
