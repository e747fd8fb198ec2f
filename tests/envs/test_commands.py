"""The matrix of `test_matrix.py` as people go through it: every kind of environment, every command, real Ray.

What a policy achieves tells in which environment it acts. It learns next to nothing here, so that all commands ask the
same of the same policy, and must find the same returns and lengths.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from env_kinds import KINDS, ROLLED, WITH_RAY, record
from env_paths import MODEL
from faults.machines import TESTS, Machines

pytestmark = [pytest.mark.ray, pytest.mark.long]

TARGETS = (-20.0, 5.0)
ASKED = "--targets=-20,5"
ALL = [name for name in ROLLED if name != "class"]
"""A class cannot be written into a config file; `test_matrix.py` has it."""
Achieved = list[list[float]]


@dataclass(frozen=True)
class Shell:
    """Runs commands in processes of their own, with a user's script around them, which join one Ray."""

    folder: Path
    address: str

    def python(self, *arguments: str) -> tuple[int, str, str]:
        """Run Python; return status, output and errors."""
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**os.environ, "RAY_ADDRESS": self.address},
        )
        return done.returncode, done.stdout, done.stderr

    def __call__(self, *arguments: str) -> str | None:
        """Run a command; return its one line of error, if it has refused something."""
        status, _, errors = self.python(str(TESTS / "own_script.py"), *arguments)
        if status == 2:
            (line,) = (line for line in errors.splitlines() if line.startswith("error:"))
            return line
        assert status == 0, errors[-3000:]
        return None

    def json(self, name: str) -> Any:
        """Return what a command has written into the folder."""
        return json.loads((self.folder / name).read_text())

    def records(self, run: str) -> list[Any]:
        """Return what a run has written of its iterations."""
        return [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray whose processes can import what the tests register."""
    machines = Machines()
    yield machines.address
    machines.close()


def achieved(evaluation: Any) -> Achieved:
    """Returns and lengths at each target."""
    return [[*target["returns"], *target["lengths"]] for target in evaluation["targets"]]


FROM_CHECKPOINT = """
import json, sys
from own_script import register
from rayrl_dt import DT
register()
algorithm = DT.from_checkpoint(sys.argv[1])
print(json.dumps(algorithm.evaluate()["alignment"]))
algorithm.stop()
"""


def write_config(name: str, shell: Shell, *, sweep: bool) -> str:
    """Write a config file for two steps that change nothing, or of a sweep of one trial."""
    kind = KINDS[name]
    values: dict[str, Any] = {
        "algorithm": "DT",
        "environment": kind.section,
        "offline_data": {"dataset": f"store:{shell.folder / 'data'}"},
        # With return dropout there is a weight of guidance for `refine` to try, whatever the actions.
        "rl_module": {"model_config": {**MODEL, "return_dropout": 0.1}},
        "training": {
            "gradient_steps": 2,
            "gradient_steps_per_iteration": 2,
            "train_batch_size_per_learner": 4,
            "lr": 1e-12,
        },
        "evaluation": {"target_returns": ",".join(map(str, TARGETS)), "episodes_per_target": 2},
    }
    if sweep:
        values["training"]["lr"] = {"choice": [1e-12]}
        values["tune"] = {"metric": "evaluation/alignment_error", "num_samples": 1}
    file = "sweep.yaml" if sweep else "config.yaml"
    (shell.folder / file).write_text(yaml.safe_dump(values))
    return file


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ALL)
def test_every_command_acts_in_the_same(name: str, address: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path, address)
    record(KINDS[name], tmp_path / "data")
    train = ("train", write_config(name, shell, sweep=False), "--out", "run")
    assert shell(*train) is None
    (first,) = shell.records("run")
    expected = achieved(first["evaluation"])

    assert shell(*train, "--resume", "--set", "training.gradient_steps=4") is None
    assert achieved(shell.records("run")[-1]["evaluation"]) == expected, "train --resume"

    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    status, printed, errors = shell.python("-c", FROM_CHECKPOINT, str(checkpoint))
    assert status == 0, errors[-3000:]
    assert achieved(json.loads(printed.splitlines()[-1])) == expected, "from_checkpoint"

    assert shell("tune", write_config(name, shell, sweep=True), "--out", "sweep") is None
    (trial,) = (tmp_path / "sweep").rglob("result.json")
    last = json.loads(trial.read_text().splitlines()[-1])
    assert last["evaluation"]["alignment_error"] == first["evaluation"]["alignment_error"], "tune"

    trusted = ("run", "--trust-environment")
    evaluate = ("eval", *trusted, ASKED, "--episodes", "2", "--json", "eval.json")
    finetune = ("finetune", *trusted, "--env-steps", "8", "--set", "training.lr=1e-12", "--set")
    if name == WITH_RAY:
        # A creator has no name: a policy's file cannot say which one it was.
        for command in (
            evaluate,
            ("refine", *trusted, "--guidance", "0"),
            (*finetune, "online.rl_gradient=none"),
        ):
            assert "'ray-walk'" in str(shell(*command))
        return

    assert shell(*evaluate) is None
    assert achieved(shell.json("eval.json")) == expected, "eval"

    assert shell("diagnose", *trusted, ASKED, "--episodes", "2", "--json", "diagnosis.json") is None
    (policy,) = shell.json("diagnosis.json")["policies"]
    found = [
        [*[target - left for left in course["left"]], *course["lengths"]]
        for target, course in zip(TARGETS, policy["courses"], strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg="diagnose")

    refine = ("refine", *trusted, "--guidance", "0", "--target=5", "--episodes", "2", "--out", "refined")
    assert shell(*refine) is None
    control = shell.json("refined/result.json")["control"]
    found = [*control["returns"], *control["lengths"]]
    np.testing.assert_allclose(found, expected[1], rtol=1e-6, err_msg="refine")

    for runners in (0, 1):
        out = f"online-{runners}"
        settings = [
            *("online.rl_gradient=none", f"env_runners.num_env_runners={runners}"),
            *("online.env_steps_per_iteration=8", "online.updates_per_iteration=1"),
            *("evaluation.target_returns='-20,5'", "evaluation.episodes_per_target=2"),
        ]
        flags = [flag for setting in settings for flag in ("--set", setting)]
        assert shell(*finetune[:-1], *flags, "--out", out) is None
        found = achieved(shell.records(out)[-1]["evaluation"])
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=f"finetune, {runners} remote runners")
