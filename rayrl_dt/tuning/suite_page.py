"""The page of a suite: its runs compared, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rayrl_dt.errors import UserError
from rayrl_dt.interop.run_files import RECORD
from rayrl_dt.reports.comparison import compare_runs, reductions
from rayrl_dt.reports.document import Block, Notice
from rayrl_dt.reports.page import write_page
from rayrl_dt.reports.run_folder import load_runs
from rayrl_dt.tuning.suite import Failure
from rayrl_dt.tuning.suite_runs import SuiteRun

__all__ = ["write_suite_page"]


def write_suite_page(runs: Sequence[SuiteRun], failures: Sequence[Failure], out: Path) -> Path:
    """Write `alignment.html` (with Markdown and PNG files) about what is there, and return its path.

    Raises:
        UserError: no run has left anything to report.
    """
    missing = {failure.run.folder: failure.reason for failure in failures}
    found = [run for run in runs if (run.folder / RECORD).exists()]
    if not found:
        reasons = "; ".join(dict.fromkeys(missing.values())) or "none was started"
        raise UserError(f"no run has left anything to compare ({reasons}); see the logs below {out}")
    loaded = load_runs([run.folder for run in found])
    lines = [
        f"{run.folder.relative_to(out)}: {missing.get(run.folder, 'not finished')}"
        for run in runs
        if not run.finished
    ]
    blocks: list[Block] = [Notice("What is missing", lines)] if lines else []
    blocks += [*reductions(loaded), *compare_runs(loaded)]
    return write_page(out, "alignment", f"Return alignment: {len(loaded)} runs", blocks)
