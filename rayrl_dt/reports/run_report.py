"""The report of one or several runs: one HTML page that holds everything, Markdown and PNG files beside it.

The last checkpoint leads and the best stands beside it, never alone; every target and every seed is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rayrl_dt.evaluation.result import EvaluationResult, blind_error
from rayrl_dt.reports import plots
from rayrl_dt.reports.comparison import compare_runs
from rayrl_dt.reports.document import (
    MISSING,
    Block,
    Code,
    Heading,
    Notice,
    Paragraph,
    Picture,
    Table,
    Tiles,
    number,
)
from rayrl_dt.reports.evaluation_text import LEGEND, METRICS, describe, metrics, places_of
from rayrl_dt.reports.finetuning import finetuning
from rayrl_dt.reports.frames import frame_figure
from rayrl_dt.reports.learning_curve import learning_curve
from rayrl_dt.reports.page import write_page
from rayrl_dt.reports.run_folder import RunFolder, load_runs

__all__ = ["write_report"]


def write_report(run_folders: Sequence[Path], out: Path) -> Path:
    """Write `report.html`, `report.md` and the PNG files into `out`, and return the page's path.

    A piece that a run lacks is named in the report.

    Raises:
        UserError: there is no run folder, or `out` cannot be a folder.
    """
    runs = load_runs(run_folders)
    if len(runs) == 1:
        title, blocks = f"{runs[0].algorithm} on {runs[0].task[0]}", _run(runs[0], "")
    else:
        title, blocks = f"Comparison of {len(runs)} runs", compare_runs(runs)
        for index, run in enumerate(runs, start=1):
            blocks += [Heading(f"Run {index}: {run.name}"), *_run(run, f"run-{index}-")]
    return write_page(Path(out), "report", title, blocks)


def _run(run: RunFolder, prefix: str) -> list[Block]:
    parts = [
        *run.task,
        f"{number(run.info['parameters'])} parameters" if run.info.get("parameters") else None,
        f"seed {run.info['seed']}" if run.info.get("seed") is not None else None,
        _moment(run.info.get("created")),
    ]
    blocks: list[Block] = [Paragraph(" \u00b7 ".join(str(part) for part in parts if part), "muted")]
    if run.problems:
        blocks.append(Notice("This run is incomplete", run.problems))
    warnings = [
        *dict.fromkeys(warning for result in (run.last, run.best) if result for warning in result.warnings)
    ]
    if warnings:
        blocks.append(Notice("Keep in mind", warnings))
    if run.last is None:
        blocks.append(
            Paragraph(
                "The last checkpoint was not evaluated in training: --resume goes on to an evaluation, and rayrl-dt "
                "eval shows what it achieves now."
            )
        )
    else:
        blocks += _evaluation(run, run.last, prefix)
    if run.frames is not None:
        alt = f"Frames that {run.name} saw at {len(run.frames.targets)} targets, from the first step to the last"
        blocks += [Heading("What it saw", 3), Picture(f"{prefix}frames.png", frame_figure(run.frames), alt)]
    blocks += finetuning(run.records, run.name, prefix)
    if run.records:
        figure = learning_curve({run.algorithm: run.records}, data_max=run.data_max)
        alt = f"Learning curves of {run.name} over gradient steps"
        blocks += [Heading("Training", 3), Picture(f"{prefix}learning-curve.png", figure, alt)]
    return blocks + _provenance(run, prefix)


def _evaluation(run: RunFolder, last: EvaluationResult, prefix: str) -> list[Block]:
    if last.targets_ignored:
        return _unasked(run, last)
    blind = blind_error([item.target for item in last.targets])
    remark = "needs several targets" if blind is None else f"of the span; blind policy {number(blind, 3)}"
    top = last.highest
    blocks: list[Block] = [
        Paragraph(" ".join(describe(last, run.best, data_max=run.data_max))),
        Tiles(
            [
                ("Alignment error", number(last.alignment_error_relative, 3), remark),
                ("Rank correlation", number(last.spearman, 2), "Spearman; 1 is best"),
                ("Highest target", number(top.return_mean), f"achieved, asked for {number(top.target)}"),
                ("Normalized score", number(last.normalized_score, 1), _score_remark(last)),
            ]
        ),
        Heading("Last checkpoint, and the best beside it", 3),
    ]
    rows = [[_checkpoint("Last", last), *metrics(last)]]
    if run.best is not None:
        rows.append([_checkpoint("Best", run.best), *metrics(run.best)])
    curves = {"last checkpoint": [last]} | ({"best checkpoint": [run.best]} if run.best else {})
    return [
        *blocks,
        Table(["Checkpoint", *METRICS], rows),
        Paragraph(LEGEND, "muted"),
        Picture(
            f"{prefix}desired-vs-achieved.png",
            plots.desired_vs_achieved(curves, data_max=run.data_max),
            f"Achieved against desired return of {run.name}; the numbers are in the table below",
            "Bars are 95% bootstrap intervals of the mean over episodes. A perfectly aligned policy lies on "
            "the dashed line.",
        ),
        Heading("Every target", 3),
        _targets(last, run.best),
        Heading("Normalized score", 3),
        Paragraph(_score(last)),
    ]


def _unasked(run: RunFolder, last: EvaluationResult) -> list[Block]:
    """Return the evaluation of a policy that predicts its own returns: what it achieved, and nothing about targets."""
    rows = [
        [_checkpoint(name, result), *_achieved(result)]
        for name, result in (("Last", last), ("Best", run.best))
        if result
    ]
    return [
        Paragraph(" ".join(describe(last, run.best, data_max=run.data_max))),
        Tiles(
            [
                ("Return", number(last.highest.return_mean), f"{last.highest.episodes} episodes"),
                ("Normalized score", number(last.normalized_score, 1), _score_remark(last)),
            ]
        ),
        Heading("Last checkpoint, and the best beside it", 3),
        Table(["Checkpoint", "Return", "Std", "Episodes", "Mean length", "Score"], rows),
        Heading("Normalized score", 3),
        Paragraph(_score(last)),
    ]


def _achieved(result: EvaluationResult) -> list[str]:
    item, places = result.highest, places_of(result)
    return [
        number(item.return_mean, places),
        number(item.return_std, places),
        number(item.episodes),
        number(item.length_mean, 1),
        number(result.normalized_score, 1),
    ]


def _targets(last: EvaluationResult, best: EvaluationResult | None) -> Table:
    header = ["Target", "Achieved, last", "Std", "Gap", "Episodes", "Mean length"]
    # The best checkpoint may have been evaluated on other targets; then its figures stay in the table above.
    others = {item.target: item.return_mean for item in best.targets} if best else {}
    places = places_of(last)
    rows = [
        [
            number(item.target, places),
            number(item.return_mean, places),
            number(item.return_std, places),
            number(item.return_mean - item.target, places),
            number(item.episodes),
            number(item.length_mean, 1),
            *([number(others.get(item.target), places)] if others else []),
        ]
        for item in sorted(last.targets, key=lambda item: item.target)
    ]
    return Table([*header, "Achieved, best"] if others else header, rows)


def _provenance(run: RunFolder, prefix: str) -> list[Block]:
    blocks: list[Block] = []
    data = run.section("data")
    returns = data.get("returns")
    if isinstance(returns, list) and returns and all(isinstance(value, (int, float)) for value in returns):
        targets = [item.target for item in run.last.targets] if run.last else []
        figure = plots.return_histogram(returns, targets=targets)
        alt = "Histogram of the data's episode returns with the targets marked"
        blocks += [Heading("Data", 3), Picture(f"{prefix}data-returns.png", figure, alt)]
    environment, dataset = run.task
    described = ", ".join(
        f"{label} {number(data[key])}"
        for key, label in (
            ("episodes", "episodes"),
            ("steps", "steps"),
            ("return_min", "return min"),
            ("return_mean", "mean"),
            ("return_max", "max"),
        )
        if key in data
    )
    versions = ", ".join(f"{name} {version}" for name, version in run.section("versions").items())
    last = run.last
    pairs = [
        ("Environment", environment),
        ("Data set", dataset),
        ("Data", described),
        ("Seed", str(run.info.get("seed", MISSING))),
        ("Checkpoint", last.checkpoint if last else None),
        (
            "Evaluation",
            f"{number(last.env_steps)} steps, {number(last.env_steps_per_s)} steps/s" if last else None,
        ),
        ("Versions", versions),
        ("Git commit", run.info.get("git_commit")),
        ("Folder", str(run.path)),
    ]
    blocks += [
        Heading("How to repeat it", 3),
        Table(["", ""], [[name, str(value or MISSING)] for name, value in pairs], "plain"),
    ]
    if run.info.get("command"):
        again = [str(part["command"]) for part in run.info.get("resumed", []) if part.get("command")]
        blocks.append(Code("\n".join([str(run.info["command"]), *again])))
    if run.config_text:
        blocks.append(Code(run.config_text, "Configuration"))
    return blocks


def _checkpoint(name: str, result: EvaluationResult) -> str:
    return name if result.gradient_steps is None else f"{name}, step {result.gradient_steps:,}"


def _score_remark(result: EvaluationResult) -> str:
    if result.score_reference is None:
        return "no reference scores"
    return "its own returns" if result.targets_ignored else "at the highest target"


def _score(result: EvaluationResult) -> str:
    environment = result.env or "this environment"
    if result.score_reference is None:
        return f"Not given: {result.score_note or f'no reference scores are known for {environment}'}."
    low, high = result.score_reference
    points = result.alignment_error_points
    return (
        f"{number(result.normalized_score, 1)} points{'' if points is None else ' at the highest target'} in "
        f"{environment}, where {number(low)} raw return scores 0 and {number(high)} scores 100"
        f"{'' if points is None else f'; E is {number(points, 1)} points'}. "
        f"Reference: {result.score_note or 'source not recorded'}."
    )


def _moment(created: object) -> str | None:
    try:
        return datetime.fromisoformat(str(created)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(created) if created else None
