"""Progress of long work where nobody sees a bar: lines in a log, seldom enough."""

from __future__ import annotations

import pytest

from rayrl_dt.cli import progress


@pytest.mark.parametrize(("seconds", "lines"), [(0.01, []), (12.0, ["recipe: 3 of 5", "recipe: 5 of 5"])])
def test_a_log_gets_a_line_now_and_then(
    seconds: float, lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress_bar("recipe") as moved:
        for done in range(1, 6):
            now += seconds
            if done == 5:
                now += seconds
            moved(done, 5)
    assert capsys.readouterr().out.splitlines() == lines
