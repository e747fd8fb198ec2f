"""The alignment suite: what it plans, and that one run's end is not the others'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrl_dt.errors import UserError
from rayrl_dt.reports.run_folder import MAXIMUM
from rayrl_dt.tuning import suite

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


def test_plan_multiplies_methods_data_sets_and_seeds(tmp_path: Path) -> None:
    one = write(tmp_path / "one.yaml", variants={"DT": {}, "RADT": {"algorithm": "RADT"}})
    two = write(tmp_path / "two.yaml", algorithm="BC", rl_module={}, name="BC 1-step")
    members = suite.plan(
        [one, two], tmp_path / "out", seeds=[3, 1], datasets=["minari:a/b-v0", "d4rl:x.hdf5"]
    )
    assert len(members) == 3 * 2 * 2
    assert [member.values["debugging"]["seed"] for member in members] == [1] * 6 + [3] * 6
    assert {member.name for member in members} == {"DT", "RADT", "BC 1-step"}
    assert {member.dataset for member in members} == {"minari:a/b-v0", "d4rl:x.hdf5"}
    folders = {str(member.folder.relative_to(tmp_path / "out")) for member in members}
    assert "runs/a-b-v0/BC-1-step-seed3" in folders and len(folders) == 12
    assert {member.gradient_steps for member in members} == {4}


def test_variants_change_the_rest_of_the_file_deeply(tmp_path: Path) -> None:
    path = write(
        tmp_path / "v.yaml",
        variants={
            "wide": {"rl_module": {"model_config": {"embed_dim": 32}}},
            "plain": None,
        },
    )
    wide, plain = suite.plan([path], tmp_path)
    model = BASE["rl_module"]["model_config"]
    assert wide.values["rl_module"]["model_config"] == {**model, "embed_dim": 32}
    assert plain.values["rl_module"]["model_config"] == model
    assert "variants" not in wide.values


def test_online_runs_end_with_their_environment_steps(tmp_path: Path) -> None:
    """Four rounds are planned; episodes of 200 steps make two of them."""
    (member,) = suite.plan([write(tmp_path / "o.yaml", **ONLINE)], tmp_path / "out")
    assert member.gradient_steps == 2 + 4 * 3
    for step, env_steps, trained in ((5, 200, False), (7, 400, False), (8, 400, True), (14, 800, True)):
        (member.folder / "checkpoints" / f"{step:09d}").mkdir(parents=True)
        with (member.folder / "metrics.jsonl").open("a") as lines:
            record = {"gradient_steps": step, "env_steps": env_steps, "done": env_steps >= 400 and step >= 8}
            lines.write(json.dumps(record) + "\n")
        assert member.trained is trained and not member.finished


def test_grids_make_one_method_per_value(tmp_path: Path) -> None:
    path = write(
        tmp_path / "k.yaml",
        rl_module={"model_config": {"context_length": {"grid": [1, 20]}, "embed_dim": 8}},
        debugging={"seed": {"choice": [0, 7]}},
        tune={"num_samples": 3},
    )
    members = suite.plan([path], tmp_path)
    assert [(member.name, member.values["debugging"]["seed"]) for member in members] == [
        ("k context_length=1", 0),
        ("k context_length=20", 0),
        ("k context_length=1", 7),
        ("k context_length=20", 7),
    ]
    assert [member.values["rl_module"]["model_config"]["context_length"] for member in members[:2]] == [1, 20]
    assert len({member.folder for member in members}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"lr": {"loguniform": [1e-5, 1e-3]}}}, "training.lr is a loguniform space.*grid"),
        ({"training": {"lr": {"grid": []}}}, "training.lr must list its values"),
        ({"variants": {"DT": {"algorithm": "DTT"}}}, "Did you mean 'DT'"),
        ({"variants": ["DT"]}, "variants must be a mapping"),
        ({"variants": {"a b": {}, "a-b": {}}}, "two methods are called"),
        ({"offline_data": {}}, "no data set|dataset"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        suite.plan([write(tmp_path / "wrong.yaml", **changes)], tmp_path)


def test_without_configs_there_is_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config"):
        suite.plan([], tmp_path)
    with pytest.raises(UserError, match="jobs is 0"):
        suite.run([], jobs=0)
    with pytest.raises(UserError, match="none was started"):
        suite.write_comparison([], [], tmp_path)


def test_another_config_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    missing = {"offline_data": {"dataset": "d4rl:/nowhere.hdf5"}}
    members = suite.plan([write(tmp_path / "a.yaml", name="x", **missing)], tmp_path / "out")
    (failure,) = suite.run(members)
    assert "/nowhere.hdf5" in failure.reason
    other = {**missing, "training": {**BASE["training"], "lr": 0.5}}
    members = suite.plan([write(tmp_path / "a.yaml", name="x", **other)], tmp_path / "out")
    with pytest.raises(UserError, match=r"another config.*choose another --out"):
        suite.run(members)


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
    members = suite.plan([path], out)
    seen: list[suite.Progress] = []
    failures = suite.run(members, jobs=2, episodes_at_maximum=2, observe=seen.append)
    reasons = {failure.member.name: failure.reason for failure in failures}
    assert set(reasons) == {"diverging", "absent"}
    assert "gradient became" in reasons["diverging"] and "exit status 1" in reasons["diverging"]
    assert "no/such-v0" in reasons["absent"]
    assert (seen[-1].done, seen[-1].failed, seen[-1].total) == (2, 2, 4) and not seen[-1].running
    maximum = json.loads((out / "runs/pendulum-mixed/RADT-seed0" / MAXIMUM).read_text())
    assert [item["target"] for item in maximum["targets"]] == [maximum["data"]["maximum"]]
    text = suite.write_comparison(members, failures, out).with_suffix(".md").read_text()
    for piece in ("What is missing", "absent-seed0: ", "Reduction of the alignment error against DT"):
        assert piece in text
    assert "At the data's maximum" in text and "RADT-seed0" in text
    # Nothing is trained twice.
    before = (members[0].folder / "metrics.jsonl").stat().st_mtime_ns
    again = suite.run(members[:2], jobs=2)
    assert again == [] and (members[0].folder / "metrics.jsonl").stat().st_mtime_ns == before
