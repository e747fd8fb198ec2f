"""Records of a run: one reader, whatever a killed process left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayrl_dt.interop.run_files import METRICS, read_json_lines, read_records
from rayrl_dt.runs.records import records_up_to


def write(folder: Path, *lines: Any) -> None:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / METRICS).write_text("".join(f"{text}\n" for text in texts))


def steps(records: list[dict[str, Any]]) -> list[Any]:
    return [record["gradient_steps"] for record in records]


@pytest.mark.parametrize("broken", ['{"gradient_st', "[1]", "3", "\x00\x00"])
def test_what_is_no_record_is_skipped_and_named(tmp_path: Path, broken: str) -> None:
    write(tmp_path, {"gradient_steps": 1}, broken, "", {"gradient_steps": 2})
    records, lines = read_records(tmp_path)
    assert steps(records) == [1, 2] and lines == [2]
    assert steps(records_up_to(tmp_path, 2)) == [1, 2]
    assert read_records(tmp_path) == (records, []), "what goes on after a resume starts from whole lines"


def test_a_repeated_iteration_counts_in_place_of_the_first(tmp_path: Path) -> None:
    write(
        tmp_path, *({"gradient_steps": step, "loss": loss} for step, loss in ((2, 0), (4, 0), (2, 1), (4, 1)))
    )
    records, _ = read_records(tmp_path)
    assert [(record["gradient_steps"], record["loss"]) for record in records] == [(2, 1), (4, 1)]
    assert len(read_json_lines(tmp_path / METRICS)[0]) == 4


def test_a_restored_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, {"gradient_steps": 2}, {"gradient_steps": 4}, {"gradient_steps": 6})
    assert steps(records_up_to(tmp_path, 4)) == [2, 4] == steps(read_records(tmp_path)[0])


def test_no_file_is_an_empty_one(tmp_path: Path) -> None:
    assert read_records(tmp_path) == ([], []) and records_up_to(tmp_path, 9) == []
    assert list(tmp_path.iterdir()) == []
