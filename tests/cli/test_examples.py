"""An example of every command's help is typed as it stands there, in a folder where what it names is small."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import requests
import typer
import yaml
from builders import build_model, store_for
from small_runs import values

from rayrl_dt.cli import app
from rayrl_dt.interop.huggingface import export_huggingface
from rayrl_dt.runs import loop

Run = Callable[..., tuple[int, str, str]]

# Which example of a command; the first one without a row.
CHOSEN = {"bench": 1}
# Minutes each, however small what they name is.
LONG = {
    "quickstart",
    "align",
    "finetune",
    "critic",
    "refine",
    *(f"experiment {name}" for name in ("shortest-path", "critic", "vitamin-bandit", "action-gradient")),
    "experiment align-offline",
}
# What is typed before.
FIRST = {"refine": "critic runs/hopper --steps 20"}
# What a command makes, and others read.
MAKES = {"train": "runs/dt_pendulum-seed1", "tune": "runs/smoke-sweep"}
RUNS = (
    "hopper",
    "dt",
    "radt",
    "dt-0",
    "dt-1",
    "dt_pendulum-seed0",
    "dt_pendulum-seed1",
    "radt_pendulum-seed0",
)


def examples() -> dict[str, list[str]]:
    """The examples of each command, by its name."""

    def below(group: Any, typed: str) -> Iterator[tuple[str, list[str]]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, f"{typed}{name} ")
            else:
                found = re.findall(rf"(?:^|: ) *rayrl-dt ({typed}{name}\b.*)$", command.help, re.MULTILINE)
                yield f"{typed}{name}", [line.partition("   (")[0].strip() for line in found]

    return dict(below(typer.main.get_command(app), ""))


@pytest.fixture(scope="module")
def prepared(ray_session: None, pendulum_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, configs and files by the names of the examples, each as small as can be."""
    folder = tmp_path_factory.mktemp("examples")
    once = {"target_returns": "dataset:3", "episodes_per_target": 1}
    smallest = {**values(pendulum_data, gradient_steps=8), "evaluation": once}
    loop.train(smallest, folder / "run")
    for name in RUNS:
        shutil.copytree(folder / "run", folder / "runs" / name)
    shutil.rmtree(folder / "run")
    lr = {"training": {**smallest["training"], "lr": {"grid": [1e-3, 1e-2]}}}
    shared = {key: value for key, value in smallest.items() if key != "algorithm"}
    configs = {
        "dt_pendulum": smallest,
        "smoke": {**smallest, **lr, "tune": {"metric": "evaluation/alignment_error"}},
        "alignment": {**shared, "variants": {"DT": {"algorithm": "DT"}, "BC": {"algorithm": "BC"}}},
    }
    (folder / "tune_configs").mkdir()
    for name, content in configs.items():
        (folder / "tune_configs" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(folder / "runs" / "hopper", folder / "runs" / "smoke-sweep" / "trial")
    _hopper(folder)
    return folder


def _hopper(folder: Path) -> None:
    """A file of D4RL's and a Decision Transformer of Hugging Face's, both of Hopper."""
    env, rng = gym.make("Hopper-v5"), np.random.default_rng(0)
    ends = np.arange(1, 201) % 50 == 0
    with h5py.File(folder / "hopper_medium-v2.hdf5", "w") as file:
        file["observations"] = rng.normal(size=(200, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (200, 3)).astype(np.float32)
        file["rewards"] = rng.normal(size=200).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(200, bool), ends
    export_huggingface(build_model(store_for(env), context_length=20), folder / "dt-hopper-medium")
    (folder / "dt-hopper-medium" / "policy.json").unlink()


def _interrupt_when_served(url: str) -> threading.Thread:
    """Presses Ctrl-C as soon as a server answers."""

    def wait() -> None:
        for _ in range(600):
            try:
                requests.get(f"{url}/health", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _marked(name: str) -> Any:
    return pytest.param(name, marks=[pytest.mark.long, pytest.mark.timeout(1800)] if name in LONG else [])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", [_marked(name) for name in examples()])
def test_an_example_of_the_help_does_as_it_says(
    run: Run, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    words = shlex.split(examples()[name][CHOSEN.get(name, 0)])
    if name in MAKES:
        shutil.rmtree(MAKES[name])
    if name == "serve":
        pytest.importorskip("fastapi", reason="needs the extra serve")
        _interrupt_when_served("http://127.0.0.1:8000")
    if name == "import":
        pytest.importorskip("transformers", reason="needs the extra hf")
    if name in FIRST:
        assert run(*shlex.split(FIRST[name]))[0] == 0
    status, out, err = run(*words)
    assert status == 0, f"{out[-2000:]}\n{err[-2000:]}"
    assert out.strip()
    for option in ("--out", "--json", "--to"):
        if option in words:
            assert (folder / words[words.index(option) + 1]).exists(), f"there is no {option}"


def test_every_command_has_an_example_that_can_be_typed() -> None:
    for name, found in examples().items():
        assert len(found) > CHOSEN.get(name, 0), name
    assert {*CHOSEN, *LONG} <= examples().keys()
