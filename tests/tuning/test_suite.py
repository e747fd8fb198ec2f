"""The suite of `rayrl-dt align`: its runs, and that one run's end is not the others'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrl_dt.errors import UserError
from rayrl_dt.interop.run_files import MAXIMUM
from rayrl_dt.tuning.suite import SuiteStatus, run_suite
from rayrl_dt.tuning.suite_page import write_suite_page
from rayrl_dt.tuning.suite_runs import read_suite

BASE: dict[str, Any] = {
    "algorithm": "DT",
    "offline_data": {"dataset": "recipe:pendulum-mixed"},
    "rl_module": {"model_config": {"context_length": 3, "embed_dim": 8, "num_layers": 1}},
    "training": {"gradient_steps": 4, "gradient_steps_per_iteration": 2, "train_batch_size_per_learner": 8},
    "evaluation": {"target_returns": "dataset:2", "episodes_per_target": 1, "evaluation_interval": 1},
}


ONLINE: dict[str, Any] = {
    "algorithm": "OnlineDT",
    "training": {"train_batch_size_per_learner": 8},
    "online": {
        "pretrain_steps": 2,
        "env_steps": 400,
        "env_steps_per_iteration": 100,
        "updates_per_iteration": 3,
    },
}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
    return path


def test_a_suite_multiplies_methods_data_sets_and_seeds(tmp_path: Path) -> None:
    one = write(tmp_path / "one.yaml", variants={"DT": {}, "RADT": {"algorithm": "RADT"}})
    two = write(tmp_path / "two.yaml", algorithm="BC", rl_module={}, name="BC 1-step")
    runs = read_suite([one, two], tmp_path / "out", seeds=[3, 1], datasets=["minari:a/b-v0", "d4rl:x.hdf5"])
    assert len(runs) == 3 * 2 * 2
    assert [run.values["debugging"]["seed"] for run in runs] == [1] * 6 + [3] * 6
    assert {run.name for run in runs} == {"DT", "RADT", "BC 1-step"}
    assert {run.dataset for run in runs} == {"minari:a/b-v0", "d4rl:x.hdf5"}
    folders = {str(run.folder.relative_to(tmp_path / "out")) for run in runs}
    assert "runs/a-b-v0/BC-1-step-seed3" in folders and len(folders) == 12
    assert {run.gradient_steps for run in runs} == {4}


def test_variants_change_the_rest_of_the_file_deeply(tmp_path: Path) -> None:
    path = write(
        tmp_path / "v.yaml",
        variants={
            "wide": {"rl_module": {"model_config": {"embed_dim": 32}}},
            "plain": None,
        },
    )
    wide, plain = read_suite([path], tmp_path)
    model = BASE["rl_module"]["model_config"]
    assert wide.values["rl_module"]["model_config"] == {**model, "embed_dim": 32}
    assert plain.values["rl_module"]["model_config"] == model
    assert "variants" not in wide.values


def test_online_runs_end_with_their_environment_steps(tmp_path: Path) -> None:
    """Four rounds are planned; episodes of 200 steps make two of them."""
    (run,) = read_suite([write(tmp_path / "o.yaml", **ONLINE)], tmp_path / "out")
    assert run.gradient_steps == 2 + 4 * 3
    for step, env_steps, trained in ((5, 200, False), (7, 400, False), (8, 400, True), (14, 800, True)):
        (run.folder / "checkpoints" / f"{step:09d}").mkdir(parents=True)
        with (run.folder / "metrics.jsonl").open("a") as lines:
            record = {"gradient_steps": step, "env_steps": env_steps, "done": env_steps >= 400 and step >= 8}
            lines.write(json.dumps(record) + "\n")
        assert run.trained is trained and not run.finished


def test_grids_make_one_method_per_value(tmp_path: Path) -> None:
    path = write(
        tmp_path / "k.yaml",
        rl_module={"model_config": {"context_length": {"grid": [1, 20]}, "embed_dim": 8}},
        debugging={"seed": {"choice": [0, 7]}},
        tune={"num_samples": 3},
    )
    runs = read_suite([path], tmp_path)
    assert [(run.name, run.values["debugging"]["seed"]) for run in runs] == [
        ("k context_length=1", 0),
        ("k context_length=20", 0),
        ("k context_length=1", 7),
        ("k context_length=20", 7),
    ]
    assert [run.values["rl_module"]["model_config"]["context_length"] for run in runs[:2]] == [1, 20]
    assert len({run.folder for run in runs}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"lr": {"loguniform": [1e-5, 1e-3]}}}, "training.lr is a loguniform space.*grid"),
        ({"training": {"lr": {"grid": []}}}, "training.lr is an empty grid"),
        ({"variants": {"DT": {"algorithm": "DTT"}}}, "Did you mean 'DT'"),
        ({"variants": ["DT"]}, "variants must be a mapping"),
        ({"variants": {"DT": 3}}, "variants.DT is 3; write a mapping"),
        ({"variants": {"a b": {}, "a-b": {}}}, "two methods are called"),
        ({"offline_data": {}}, "no data set|dataset"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_suite([write(tmp_path / "wrong.yaml", **changes)], tmp_path)


def test_without_configs_there_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config"):
        read_suite([], tmp_path)
    with pytest.raises(UserError, match="jobs is 0"):
        run_suite([], jobs=0)
    with pytest.raises(UserError, match="none was started"):
        write_suite_page([], [], tmp_path)


def test_another_config_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    missing = {"offline_data": {"dataset": "d4rl:/nowhere.hdf5"}}
    runs = read_suite([write(tmp_path / "a.yaml", name="x", **missing)], tmp_path / "out")
    (failure,) = run_suite(runs)
    assert "/nowhere.hdf5" in failure.reason
    other = {**missing, "training": {**BASE["training"], "lr": 0.5}}
    runs = read_suite([write(tmp_path / "a.yaml", name="x", **other)], tmp_path / "out")
    with pytest.raises(UserError, match=r"another config.*choose another --out"):
        run_suite(runs)


def test_the_page_is_written_from_what_finished(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mixed.yaml",
        variants={
            "DT": {},
            "RADT": {"algorithm": "RADT"},
            "diverging": {"training": {"lr": 1e30, "grad_clip": None, "warmup_steps": 0}},
            "absent": {"offline_data": {"dataset": "minari:no/such-v0"}},
        },
    )
    out = tmp_path / "out"
    runs = read_suite([path], out)
    seen: list[SuiteStatus] = []
    failures = run_suite(runs, jobs=2, episodes_at_maximum=2, observe=seen.append)
    reasons = {failure.run.name: failure.reason for failure in failures}
    assert set(reasons) == {"diverging", "absent"}, reasons
    assert "gradient became" in reasons["diverging"] and "exit status 1" in reasons["diverging"]
    assert "no/such-v0" in reasons["absent"]
    assert (seen[-1].done, seen[-1].failed, seen[-1].total) == (2, 2, 4) and not seen[-1].running
    maximum = json.loads((out / "runs/pendulum-mixed/RADT-seed0" / MAXIMUM).read_text())
    assert [item["target"] for item in maximum["targets"]] == [maximum["data"]["maximum"]]
    text = write_suite_page(runs, failures, out).with_suffix(".md").read_text()
    for piece in ("What is missing", "absent-seed0: ", "Reduction of the alignment error against DT"):
        assert piece in text
    assert "At the data's maximum" in text and "RADT-seed0" in text
    # Nothing is trained twice.
    before = (runs[0].folder / "metrics.jsonl").stat().st_mtime_ns
    again = run_suite(runs[:2], jobs=2)
    assert again == [] and (runs[0].folder / "metrics.jsonl").stat().st_mtime_ns == before
