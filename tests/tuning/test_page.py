"""The page of a sweep in a real browser: it sorts on a click, lights a trial up, and reports no error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from rayrl_dt.tuning.report import Winner, write_sweep_page
from rayrl_dt.tuning.results import TrialResult, group_trials
from rayrl_dt.tuning.sweep_spec import read_sweep

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# What a reader does, done by the page's own elements; the answers are read from the page that results.
ACTIONS = """
<script>
const column = (table, index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
const table = [...document.querySelectorAll("table.sortable")].at(-1);
const last = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === "Last");
const press = (index) => table.tHead.rows[0].cells[index].querySelector("button").click();
const seen = { before: column(table, last) };
press(last); seen.up = column(table, last); seen.sort = table.tHead.rows[0].cells[last].ariaSort;
press(last); seen.down = column(table, last);
press(1); seen.names = column(table, 1);
const drawings = [...document.querySelectorAll("figure svg")];
seen.drawings = drawings.map((svg) => [svg.getBoundingClientRect().width > 300, new Set(
  [...svg.querySelectorAll("[data-name]")].map((part) => part.dataset.name)).size]);
const line = drawings[0].querySelector("[data-name='b'] path");
line.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
seen.lit = [...new Set([...document.querySelectorAll(".lit")].map((part) => part.dataset.name))];
seen.litRows = table.querySelectorAll("tr.lit").length;
seen.title = line.parentNode.querySelector("title").textContent;
document.body.append(Object.assign(document.createElement("output"), { textContent: JSON.stringify(seen) }));
</script>
</body>"""


@pytest.fixture
def browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip(f"no browser is installed ({', '.join(BROWSERS)}); on Debian: apt-get install chromium")


def write_page(folder: Path) -> Path:
    """The page of four trials, of which one failed before its first report."""
    values = {
        "algorithm": "OnlineDT",
        "offline_data": {"dataset": "recipe:pendulum-mixed"},
        "online": {
            "alpha": {"loguniform": [0.01, 1.0]},
            "rl_gradient": {"choice": ["td3", "none"]},
        },
        "tune": {"num_samples": 4, "metric": "evaluation/return_mean"},
    }
    spec = read_sweep(values, default_name="page")
    curves: dict[str, list[float]] = {
        "a": [-1200.5, -1000.25],
        "b": [-90.0, -80.0],
        "c": [-500.0, -300.0],
        "d": [],
    }

    def trial(name: str, alpha: float, curve: list[float]) -> TrialResult:
        points = tuple((3 * number, value) for number, value in enumerate(curve, start=1))
        parameters: dict[str, Any] = {
            "online.alpha": alpha,
            "online.rl_gradient": "td3" if name in "ab" else "none",
        }
        status = "finished" if curve else "failed"
        return TrialResult(name, folder / name, parameters, status, points, ((0.0, 1.0),), "max")

    trials = [
        trial(name, alpha, curve)
        for (name, curve), alpha in zip(curves.items(), (0.5, 0.02, 0.1, 0.9), strict=True)
    ]
    groups = group_trials(trials, "max")
    winner = Winner(groups[0], trials[1], folder / "policy", "rayrl-dt train x --set 'a=<b>'")
    return write_sweep_page(spec, trials, groups, winner, folder)


def test_the_page_answers_in_a_browser(browser: str, tmp_path: Path) -> None:
    text = write_page(tmp_path).read_text()
    assert text.count("</body>") == 1
    opened = tmp_path / "opened.html"
    opened.write_text(text.replace("</body>", ACTIONS))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom", opened.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    found = re.search(r"<output>(.*?)</output>", done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    seen = json.loads(unescape(found[1]))
    minus = "\N{MINUS SIGN}"
    best_first = [f"{minus}80", f"{minus}300", f"{minus}1,000", "\N{EN DASH}"]
    assert seen["before"] == best_first
    # What is unknown stays last, whichever way the others go.
    assert seen["up"] == [f"{minus}1,000", f"{minus}300", f"{minus}80", "\N{EN DASH}"]
    assert seen["sort"] == "ascending" and seen["down"] == best_first
    assert seen["names"] == ["0.02", "0.1", "0.5", "0.9"]
    # Parallel coordinates, scatter, learning curves: the failed trial is in none of them.
    assert seen["drawings"] == [[True, 3], [True, 3], [True, 3]]
    assert seen["lit"] == ["b"] and seen["litRows"] == 1
    assert seen["title"].startswith(f"trial b: {minus}80") and "online.alpha 0.02" in seen["title"]


def test_the_page_opens_with_its_answer(tmp_path: Path) -> None:
    minus = "\N{MINUS SIGN}"
    answer = (
        f"best is alpha 0.02, rl_gradient td3: evaluation/return_mean {minus}80; the worst has {minus}1,000."
    )
    assert f"Of 3 settings the {answer}" in write_page(tmp_path).read_text()


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = write_page(tmp_path)
    text = page.read_text()
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"|url\((?!#)([^)]*)\)', text)
    assert not [link for link in links if not any(part.startswith("data:") for part in link)]
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers)), "two drawings share an identifier"
    assert "d: failed" in text and "a=&lt;b&gt;" in text and str(tmp_path / "policy") in text
    assert "sweep-parallel.svg" in page.with_suffix(".md").read_text()
    write_page(tmp_path)
    assert page.read_text() == text, "equal sweeps give equal pages"
