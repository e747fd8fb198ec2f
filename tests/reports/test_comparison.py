"""What a comparison of methods says beyond a report: reductions, every seed, and data that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrl_dt.evaluation.reduction import method_of
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.evaluation.targets import ReturnRange
from rayrl_dt.interop.run_files import MAXIMUM
from rayrl_dt.reports.comparison import compare_runs, reductions
from rayrl_dt.reports.document import Table
from rayrl_dt.reports.markdown import to_markdown
from rayrl_dt.reports.run_folder import RunFolder, load_runs
from rayrl_dt.reports.seeds import group_seeds

DATA = ReturnRange(0.0, 10.0, 90.0, 100.0)


def write_run(
    folder: Path,
    *,
    name: str,
    error: float,
    seed: int = 0,
    dataset: str = "minari:a/b-v0",
    targets: tuple[float, ...] = (10.0, 50.0, 90.0),
    maximum: float | None = None,
    stopped: bool = False,
    config: dict[str, Any] | None = None,
) -> Path:
    """A run folder whose last checkpoint misses each target by `error`."""
    (folder / "evaluations").mkdir(parents=True)

    def result(asked: tuple[float, ...], off: float) -> str:
        items = tuple(TargetResult(t, (t + off, t + off), (5, 5)) for t in asked)
        return json.dumps(EvaluationResult(items, env="E-v1", dataset=dataset, data=DATA).to_json())

    (folder / "evaluations" / "last.json").write_text(result(targets, error))
    (folder / "evaluations" / "best.json").write_text(result(targets, error / 2))
    if maximum is not None:
        (folder / MAXIMUM).write_text(result((100.0,), maximum - 100.0))
    info = {"name": name, "algorithm": name, "seed": seed, "dataset": dataset, "env": "E-v1"}
    (folder / "run.json").write_text(json.dumps({**info, "expected_gradient_steps": 3000}))
    chosen = {"name": name, "debugging": {"seed": seed}, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(chosen))
    step = 500 if stopped else 3000
    record = {"gradient_steps": step, "loss": 1.0, "done": not stopped}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return folder


def table(blocks: list, title: str) -> Table:
    return next(block for block in blocks if isinstance(block, Table) and title in block.header)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunFolder]:
    folders = [
        write_run(
            tmp_path / f"{factor}-{name}-{seed}", name=name, error=error + seed, seed=seed, dataset=task
        )
        for task, factor in (("minari:a/b-v0", 1.0), ("minari:c/d-v0", 2.0))
        for name, error in (("DT", 20.0 * factor), ("RADT", 5.0 * factor))
        for seed in (0, 1)
    ]
    return load_runs(folders)


def test_the_reduction_is_shown_per_task_and_on_average(runs: list[RunFolder]) -> None:
    (block,) = [block for block in reductions(runs) if isinstance(block, Table)]
    first, second = 1 - 5.5 / 20.5, 1 - 10.5 / 40.5
    assert list(block.header) == ["Last checkpoints", "RADT"], "what there is more of goes down the page"
    assert [row[1] for row in block.rows] == [f"{each:.1%}" for each in (first, second, (first + second) / 2)]
    assert block.rows[-1][0] == "Mean" and "minari:a/b-v0" in block.rows[0][0]
    one = reductions([run for run in runs if run.task[1] == "minari:a/b-v0"])
    (block,) = [block for block in one if isinstance(block, Table)]
    assert [list(row) for row in block.rows] == [["RADT", f"{first:.1%}", f"{first:.1%}"]]


def test_every_error_has_its_mean_and_spread_over_seeds(runs: list[RunFolder]) -> None:
    blocks = compare_runs([run for run in runs if run.task[1] == "minari:a/b-v0"])
    rows = {row[0]: row for row in table(blocks, "Seeds").rows}
    assert rows["DT (2 seeds)"][1:3] == ["2", "20.50 \u00b1 0.71"]
    assert rows["DT (2 seeds)"][-1] == "\u2013"
    assert rows["RADT (2 seeds)"][-1].startswith("73.2% [")


def test_without_the_baseline_there_is_no_reduction(tmp_path: Path) -> None:
    loaded = load_runs([write_run(tmp_path / "radt", name="RADT", error=1.0)])
    assert reductions(loaded) == []


def test_the_return_at_the_datas_maximum_stands_beside_the_errors(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "dt", name="DT", error=3.0, maximum=40.0),
        write_run(tmp_path / "radt", name="RADT", error=1.0),
    ]
    rows = table(compare_runs(load_runs(folders)), "At the data's maximum").rows
    assert [row[-1] for row in rows] == ["40.00 of 100.00", "\u2013"]


def test_data_with_one_return_only_is_still_compared(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, name=name, error=error, targets=(50.0,))
        for name, error in (("DT", 4.0), ("RADT", 2.0))
    ]
    blocks = [*reductions(load_runs(folders)), *compare_runs(load_runs(folders))]
    text = to_markdown(blocks)
    assert "50.0%" in text and "nan" not in text.lower()


def test_a_run_that_stopped_early_enters_no_mean(tmp_path: Path) -> None:
    """It stands beside those that came to their end, and says where it stopped."""
    folders = [
        write_run(tmp_path / f"{name}-{seed}", name=name, error=error, seed=seed, stopped=error == 100.0)
        for name, errors in (("DT", (20.0, 20.0)), ("RADT", (10.0, 10.0, 100.0)))
        for seed, error in enumerate(errors)
    ]
    loaded = load_runs(folders)
    assert [len(run.problems) for run in loaded] == [0, 0, 0, 0, 1]
    assert loaded[-1].problems[0].endswith("at step 500 of 3,000")
    (words, *_) = reductions(loaded)
    assert "50.0% lower with RADT." in words.text and "500" not in words.text
    rows = {row[0]: row for row in table(compare_runs(loaded), "Seeds").rows}
    assert rows["RADT (2 seeds)"][1:3] == ["2", "10.00 \u00b1 0.00"]
    assert rows["RADT, at step 500 of 3,000"][1:3] == ["1", "100.00"]
    every = table(compare_runs(loaded), "Best E / span").rows
    assert [row[0] for row in every][-2:] == ["RADT-1", "RADT-2, at step 500 of 3,000"]


def test_a_seed_without_an_evaluation_is_not_counted(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"DT-{seed}", name="DT", error=20.0, seed=seed) for seed in range(3)]
    (folders[2] / "evaluations" / "last.json").unlink()
    rows = table(compare_runs(load_runs(folders)), "Seeds").rows
    assert [row[:2] for row in rows] == [["DT (2 seeds)", "2"]]


def test_names_with_brackets_stay_apart(tmp_path: Path) -> None:
    errors = {"DT (wide)": 40.0, "DT": 20.0, "RADT (K=5)": 10.0, "RADT (K=20)": 30.0}
    folders = [
        write_run(tmp_path / f"{index}-{seed}", name=name, error=error, seed=seed)
        for index, (name, error) in enumerate(errors.items())
        for seed in (0, 1)
    ]
    words, _, found, _ = reductions(load_runs(folders))
    rows = {row[0]: row[1] for row in found.rows}
    assert rows == {"DT (wide)": "\u2212100.0%", "RADT (K=5)": "50.0%", "RADT (K=20)": "\u221250.0%"}
    assert (
        "50.0% lower with RADT (K=5), 50.0% higher with RADT (K=20), 100.0% higher with DT (wide)"
        in words.text
    )


def test_a_seed_that_was_run_again_is_no_other_seed(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{index}", name="DT", error=1.0, seed=seed)
        for index, seed in enumerate((0, 1, 1))
    ]
    (label,) = group_seeds(load_runs(folders))
    assert label == "DT (3 runs of 2 seeds)" and method_of(label) == "DT"
    (label,) = group_seeds(load_runs(folders[1:]))
    assert label == "DT (2 runs of 1 seed)" and method_of(label) == "DT"


def test_finetuned_runs_are_seeds_of_one_method_where_they_began_alike(tmp_path: Path) -> None:
    """Each has a copy of its own of the policy that it started from, and names that."""
    folders = []
    for backbone in ("dt", "radt"):
        for seed in (0, 1):
            folder = tmp_path / f"{backbone}-{seed}"
            section = {"online": {"start_from": str(folder / "start"), "alpha": 0.1}}
            write_run(folder, name="TD3+ODT", error=1.0 + seed, seed=seed, config=section)
            (folder / "start").mkdir()
            spec = {"model": {"backbone": backbone}, "dataset": "d", "return_scale": 1.0, "reward_scale": 1.0}
            header = {"spec": spec, "gradient_steps": 3000, "command": f"--seed {seed}"}
            (folder / "start" / "policy.json").write_text(json.dumps(header))
            folders.append(folder)
    groups = group_seeds(load_runs(folders))
    assert {label: [run.name for run in group] for label, group in groups.items()} == {
        "dt-0 (2 seeds)": ["dt-0", "dt-1"],
        "radt-0 (2 seeds)": ["radt-0", "radt-1"],
    }
    (folders[1] / "start" / "policy.json").unlink()
    assert len(group_seeds(load_runs(folders))) == 3, "what it started from is not known"
