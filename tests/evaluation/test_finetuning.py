"""What finetuning did: the drop at the switch, when the policy was back, area and unsteadiness, obedience."""

from __future__ import annotations

from typing import Any

import pytest

from rayrl_dt.evaluation.finetuning import course_of
from rayrl_dt.reports.document import Paragraph, Picture, Table
from rayrl_dt.reports.finetuning import finetuning


def record(
    steps: int, achieved: float | None, *, phase: str = "online", error: float = 1.0, **more: Any
) -> Any:
    found = {
        "phase": phase,
        "env_steps": steps,
        "gradient_steps": steps + 100,
        "collected_return": steps / 10,
        **more,
    }
    if achieved is not None:
        targets = [{"target": 50.0, "return_mean": 7.0}, {"target": 90.0, "return_mean": achieved}]
        found["evaluation"] = {"targets": targets, "alignment_error": error, "spearman": 0.5}
    return found


RECORDS = [
    record(0, 3.0, phase="pretraining"),
    record(0, 40.0, phase="pretraining", error=2.0, collected_return=None),
    record(100, None),
    record(200, 10.0),
    record(300, 35.0),
    record(400, 45.0),
    record(600, 20.0, error=8.0),
]


def test_the_drop_is_found_and_where_the_policy_is_back() -> None:
    course = course_of(RECORDS)
    assert course is not None and course.before is not None
    assert (course.before.achieved, course.before.error) == (40.0, 2.0), (
        "the last evaluation before going online"
    )
    assert course.fell is not None and course.fell.env_steps == 200
    assert course.back is not None and course.back.env_steps == 400
    assert (course.lowest.achieved, course.best.achieved) == (10.0, 45.0)
    assert [steps for steps, _ in course.collected] == [100, 200, 300, 400, 600]
    # 0 to 200, 300, 400 and 600 steps: trapezoids.
    assert course.area == pytest.approx((200 * 25 + 100 * 22.5 + 100 * 40 + 200 * 32.5) / 600)
    # Changes 25, 10 and -25.
    assert course.unsteadiness == pytest.approx(
        (((25 - 10 / 3) ** 2 + (10 - 10 / 3) ** 2 + (25 + 10 / 3) ** 2) / 3) ** 0.5
    )


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (
            slice(None),
            "Offline the policy achieved 40; online it fell below that by 200 environment steps and was back by",
        ),
        (slice(None, 5), "and has not come back"),
        (slice(2, None), "was not evaluated"),
    ],
)
def test_the_page_says_it(kept: slice, told: str) -> None:
    _, words, table, picture, _ = finetuning(RECORDS[kept], "a run", "run-1-")
    assert isinstance(words, Paragraph) and told in words.text
    assert isinstance(picture, Picture) and picture.name == "run-1-finetuning.png"
    assert isinstance(table, Table)
    assert (table.rows[0][0] == "Before") == (kept.start is None)
    assert table.rows[-1][:3] == (["Last", "600", "20"] if kept.stop is None else ["Last", "300", "35"])


def test_a_policy_that_never_fell() -> None:
    (_, words, *_) = finetuning([RECORDS[0], RECORDS[4], RECORDS[5]], "a run", "")
    assert isinstance(words, Paragraph) and "no evaluation online is below that" in words.text


def test_runs_without_finetuning_and_broken_lines_say_nothing() -> None:
    broken = [
        {"phase": "online"},
        {"phase": "online", "evaluation": {"targets": []}},
        record(5, float("nan")),
    ]
    for records in ([], [{"loss": 1.0, "gradient_steps": 5}], RECORDS[:2], broken):
        assert course_of(records) is None and finetuning(records, "a run", "") == []
