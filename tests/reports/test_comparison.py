"""What a comparison of methods says beyond a report: reductions, every seed, and data that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.evaluation.targets import ReturnRange
from rayrl_dt.interop.run_files import MAXIMUM
from rayrl_dt.reports.comparison import compare_runs, reductions
from rayrl_dt.reports.document import Table
from rayrl_dt.reports.markdown import to_markdown
from rayrl_dt.reports.run_folder import RunFolder, load_runs

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
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": name, "debugging": {"seed": seed}}))
    (folder / "metrics.jsonl").write_text(json.dumps({"gradient_steps": 1, "loss": 1.0}) + "\n")
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
