"""The report: what it must show, what it must survive, and how a browser sees it."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.evaluation.targets import ReturnRange
from rayrl_dt.reports import document, evaluation_text
from rayrl_dt.reports.run_folder import load_runs
from rayrl_dt.reports.run_report import write_report
from rayrl_dt.reports.seeds import group_seeds

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TARGETS = (8.0, 196.0, 385.0, 573.0, 762.0, 950.0, 1138.0)
RADT = (17.0, 241.0, 363.0, 356.0, 437.0, 840.0, 1139.0)


def evaluation(means=RADT, targets=TARGETS, **fields):
    fields = {"env": "Hopper-v5", "dataset": "minari:a/hopper-v0", "gradient_steps": 600, **fields}
    data = ReturnRange(2.0, 8.0, 1138.0, 3124.0)
    items = (TargetResult(t, (m - 20, m + 20), (50, 60)) for t, m in zip(targets, means, strict=True))
    return EvaluationResult(tuple(items), data=data, **fields)


def make_run(folder, *, algorithm="RADT", seed=0, means=RADT, env="Hopper-v5"):
    (folder / "evaluations").mkdir(parents=True)
    last = evaluation(means, env=env)
    best = evaluation(np.add(means, TARGETS) / 2, env=env, gradient_steps=400)
    (folder / "evaluations/last.json").write_text(json.dumps(last.to_json()))
    (folder / "evaluations/best.json").write_text(json.dumps(best.to_json()))
    records = [{"gradient_steps": s, "loss": 10.0 / s, "lr": 1e-4} for s in range(100, 601, 100)]
    records[-1]["evaluation"] = last.to_json()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(f"algorithm: {algorithm}\ndebugging: {{seed: {seed}}}\nlr: 0.0003\n")
    info = {
        "command": "rayrl-dt train radt.yaml --set 'a=<b>' && true",
        "created": "2025-06-01T12:30:00+00:00",
        "versions": {"ray": "2.60.0", "gymnasium": "1.2.2"},
        "git_commit": None,
        "seed": seed,
        "dataset": "minari:a/hopper-v0",
        "env": env,
        "algorithm": algorithm,
        "parameters": 1205763,
        "data": {
            "episodes": 2000,
            "steps": 400000,
            "return_min": 2.0,
            "return_max": 3124.0,
            "return_mean": 600.5,
        },
    }
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def visible_text(page):
    return re.sub(r"<[^>]+>", " ", page.read_text())


def test_report_shows_everything_in_one_file_and_its_twins(tmp_path):
    page = write_report([make_run(tmp_path / "radt")], tmp_path / "report")
    html, markdown = page.read_text(), (tmp_path / "report/report.md").read_text()
    assert page == tmp_path / "report/report.html"
    assert html.startswith("<!doctype html>") and "<script" not in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html), "the page must need no other file"
    assert html.count("data:image/png;base64,") == 2
    for text in ("1,205,763", "ray 2.60.0", "Configuration", "lr: 0.0003", "seed 0", "0.286"):
        assert text in html, text
    assert "&lt;b&gt;" in html and "<b>" not in html
    for name in ("desired-vs-achieved.png", "learning-curve.png"):
        assert (tmp_path / "report" / name).stat().st_size > 5_000
        assert f"]({name})" in markdown
    assert "rayrl-dt train radt.yaml --set 'a=<b>' && true" in markdown
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "desired-vs-achieved.png",
        "learning-curve.png",
        "report.html",
        "report.md",
    ]


def test_last_checkpoint_comes_first_and_every_target_is_listed(tmp_path):
    page = write_report([make_run(tmp_path / "radt")], tmp_path / "report")
    text = visible_text(page)
    assert text.index("Last, step 600") < text.index("Best, step 400")
    markdown = (tmp_path / "report/report.md").read_text()
    for target, mean in zip(TARGETS, RADT, strict=True):
        assert re.search(rf"^\| {target:,.1f} \| {mean:,.1f} \|", markdown, re.MULTILINE), target


def test_score_names_its_reference_or_why_there_is_none(tmp_path):
    run = make_run(tmp_path / "run")
    assert "no reference scores are known for Hopper-v5" in visible_text(write_report([run], tmp_path / "a"))
    scored = evaluation(score_reference=(20.0, 3220.0), score_note="worked by hand")
    (run / "evaluations/last.json").write_text(json.dumps(scored.to_json()))
    text = visible_text(write_report([run], tmp_path / "b"))
    assert "35.0 points at the highest target in Hopper-v5" in text and "worked by hand" in text


PIECES = ("run.json", "config.yaml", "metrics.jsonl", "evaluations/last.json", "evaluations/best.json")


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    "content", [None, b"", b"{oops", b"[1, 2]", b"\xff\xfe\x00", b'{"targets": 3}', b"null"]
)
def test_missing_and_broken_pieces_are_named(tmp_path, piece, content):
    run = make_run(tmp_path / "run")
    (run / piece).unlink()
    if content is not None:
        (run / piece).write_bytes(content)
    (loaded,) = load_runs([run])
    # A few of these are legal: an empty configuration, a run without facts.
    if content in (None, b"{oops", b"\xff\xfe\x00"):
        assert any(problem.startswith(piece) for problem in loaded.problems)


@pytest.mark.parametrize("kept", PIECES)
def test_one_whole_piece_is_enough_for_a_report(tmp_path, kept):
    run = make_run(tmp_path / "run")
    for number, piece in enumerate(PIECES):
        if piece != kept:
            (run / piece).unlink()
            if number % 2:
                (run / piece).write_text("{oops")
    text = visible_text(write_report([run], tmp_path / "report"))
    assert "This run is incomplete" in text
    assert all(piece in text for piece in PIECES if piece != kept)


@pytest.mark.parametrize(
    "info", [{"data": 3, "versions": [1]}, {"data": {"returns": ["x"], "return_max": "y"}}]
)
def test_facts_of_the_wrong_type_do_no_harm(tmp_path, info):
    run = make_run(tmp_path / "run")
    (run / "run.json").write_text(json.dumps({**info, "parameters": "many", "created": 3, "command": ["a"]}))
    assert "many parameters" in visible_text(write_report([run], tmp_path / "report"))


def test_a_killed_run_falls_back_on_its_log(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "evaluations/last.json").unlink()
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"gradient_steps": 70')
    (loaded,) = load_runs([run])
    assert loaded.last is not None and loaded.last.alignment_error == evaluation().alignment_error
    text = visible_text(write_report([run], tmp_path / "report"))
    assert "taken from metrics.jsonl, gradient step 600" in text and "line 7" in text


def test_the_best_checkpoint_is_never_shown_alone(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "evaluations/last.json").unlink()
    (run / "metrics.jsonl").unlink()
    text = visible_text(write_report([run], tmp_path / "report"))
    assert "not shown alone" in text and "Best, step" not in text


def test_a_resumed_run_is_drawn_once(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"gradient_steps": 500, "loss": 1}\n{"gradient_steps": 600, "loss": 2}\n')
    (loaded,) = load_runs([run])
    assert [record["gradient_steps"] for record in loaded.records] == [100, 200, 300, 400, 500, 600]
    assert [record["loss"] for record in loaded.records[-2:]] == [1, 2]


def test_runs_are_compared_by_seed_and_only_within_a_task(tmp_path):
    runs = [
        make_run(tmp_path / "radt-0", seed=0),
        make_run(tmp_path / "radt-1", seed=1, means=TARGETS),
        make_run(tmp_path / "dt", algorithm="DT", means=(573.0,) * 7),
        make_run(tmp_path / "other", env="Walker2d-v5"),
    ]
    assert list(group_seeds(load_runs(runs[:3]))) == ["RADT (2 seeds)", "DT"]
    page = write_report(runs, tmp_path / "report")
    text, markdown = visible_text(page), (tmp_path / "report/report.md").read_text()
    assert "Comparison of 4 runs" in text
    assert "smallest first: RADT (2 seeds) 0.046, DT 0.286." in text
    assert "A single seed says nothing" in text
    assert "Hopper-v5 from minari:a/hopper-v0" in text and "Walker2d-v5 from minari:a/hopper-v0" in text
    for run in runs:
        assert re.search(rf"^\| {run.name} \| ", markdown, re.MULTILINE)
    assert (tmp_path / "report/comparison-1-desired-vs-achieved.png").exists()
    assert (tmp_path / "report/run-4-desired-vs-achieved.png").exists()


def test_an_older_report_is_replaced_and_other_files_are_left_alone(tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "report"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "report.html").write_text("old")
    write_report([run], out)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "report.html").read_text() != "old"


def test_no_run_is_a_user_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for folders in ([], [tmp_path / "absent"], [tmp_path / "empty"], [tmp_path / "file"]):
        with pytest.raises(UserError):
            write_report(folders, tmp_path / "report")
    with pytest.raises(UserError, match="choose another --out"):
        write_report([make_run(tmp_path / "run")], tmp_path / "file")


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        (RADT, "follows the asked return closely"),
        ((573.0,) * 7, "achieves the same return whatever it is asked for"),
        ((1138.0, 950.0, 762.0, 573.0, 385.0, 196.0, 8.0), "does not follow the asked return"),
        (np.add(TARGETS, 2000.0), "orders its returns as asked but misses their level"),
        ((600.0, 500.0, 550.0, 560.0, 620.0, 610.0, 640.0), "follows the asked return weakly"),
        (np.linspace(560.0, 590.0, 7), "hardly moves with what it is asked for (its returns span 3% of"),
    ],
)
def test_sentences_say_what_the_numbers_say(means, verdict):
    assert verdict in evaluation_text.describe(evaluation(means))[0]


def test_sentences_name_gaps_and_what_the_best_checkpoint_hides():
    sentences = " ".join(
        evaluation_text.describe(evaluation(), evaluation(TARGETS, gradient_steps=400), data_max=1000.0)
    )
    assert "target 762.0, where it achieved 437.0 (325.0 too low): 45% of the summed error" in sentences
    assert "more than the best episode of the data (1,000)" in sentences
    assert "best checkpoint (gradient step 400) has alignment error 0.0 against 104.1" in sentences
    assert "needs several targets" in evaluation_text.describe(evaluation([5.0], [7.0]))[0]


def test_a_policy_that_was_asked_for_nothing_is_not_said_to_follow(tmp_path):
    unasked = evaluation(
        [573.0],
        [1138.0],
        targets_ignored=True,
        score_reference=(0.0, 1146.0),
        score_note="by hand",
        warnings=["it predicts its own returns"],
    )
    run = make_run(tmp_path / "run")
    (run / "evaluations/last.json").write_text(json.dumps(unasked.to_json()))
    (run / "evaluations/best.json").write_text(json.dumps(unasked.to_json()))
    text = visible_text(write_report([run], tmp_path / "report"))
    assert "was asked for none; the last checkpoint achieved 573.0 on average" in text
    assert "50.0 points in Hopper-v5, where" in text and "it predicts its own returns" in text
    for word in ("Alignment error", "Highest target", "1,138.0", "needs several targets"):
        assert word not in text
    other = make_run(tmp_path / "other", algorithm="BC")
    both = write_report([run, other], tmp_path / "both")
    compared = visible_text(both)
    assert "573.0" in compared and "Mean ± std over seeds" not in compared


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (None, None, "\u2013"),
        (float("nan"), None, "\u2013"),
        (True, None, "\u2013"),
        (1234567, None, "1,234,567"),
        (-0.25, None, "\u22120.25"),
        (3124.04, None, "3,124"),
        (20.27, None, "20.27"),
        (0.00042, None, "0.00042"),
        (-0.0123456, None, "\u22120.0123"),
        (1e-17, None, "1e\u221217"),
        (0.0, None, "0"),
        (-0.004, 1, "0.0"),
        (1138, 1, "1,138"),
        ("as is", None, "as is"),
    ],
)
def test_numbers_are_readable(value, places, text):
    assert document.number(value, places) == text


def test_a_sweep_is_told_where_its_page_is(tmp_path):
    (tmp_path / "sweep" / "trial").mkdir(parents=True)
    (tmp_path / "sweep" / "sweep.html").write_text("")
    for folder in (tmp_path / "sweep", tmp_path / "sweep" / "trial"):
        with pytest.raises(UserError, match=r"is a sweep, or a trial of one; open its page, .*sweep\.html"):
            load_runs([folder])


def test_small_returns_have_figures():
    assert [document.decimals(values) for values in ([0.0, 5e-4, 1e-3], [0.05], [0.5], [12.0])] == [
        5,
        4,
        3,
        3,
    ]
    assert document.number(5e-4, document.decimals([0.0, 1e-3])) == "0.00050"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_renders_the_page(tmp_path):
    runs = [make_run(tmp_path / "radt"), make_run(tmp_path / "dt", algorithm="DT")]
    page = write_report(runs, tmp_path / "report")
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    switches += ["--disable-sync", "--disable-background-networking", "--disable-component-update"]
    finished = subprocess.run(
        [BROWSER, *switches, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    text = re.sub(r"<[^>]+>", " ", finished.stdout)
    for words in (
        "Comparison of 2 runs",
        "Run 1: radt",
        "Last, step 600",
        "Best, step 400",
        "Normalized score",
    ):
        assert words in text, words
    # The DOM keeps the pictures and the structure: nothing was mangled by unescaped text.
    assert finished.stdout.count("<img ") == 6
    assert finished.stdout.count("<details>") == 2
