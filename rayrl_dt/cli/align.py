"""`rayrl-dt align`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rayrl_dt.cli.console import console, finish, leave_unfinished, quoted
from rayrl_dt.cli.options import Overrides, place
from rayrl_dt.errors import UserError

if TYPE_CHECKING:
    from rayrl_dt.tuning.suite import SuiteStatus
    from rayrl_dt.tuning.suite_runs import SuiteRun

__all__ = ["align"]


def align(
    configs: Annotated[
        list[Path], typer.Argument(help="YAML files, one for each method; grids are enumerated.")
    ],
    seeds: Annotated[
        str | None, typer.Option(help='Seeds of each method, as in "0,1,2"; the configs\' own by default.')
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Data source, may be given several times; the configs' own by default."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path, place(help="Folder to write the runs and the page to.")] = Path("runs/alignment"),
    jobs: Annotated[int, typer.Option(help="Runs at a time; the cores are divided among them.")] = 1,
    episodes_at_maximum: Annotated[
        int, typer.Option(help="Episodes of each run that ask for the data's best return.")
    ] = 20,
) -> None:
    """Train several methods on several data sets with several seeds; write one page that compares them.

    The page shows the last checkpoints, the best beside them, every target and every seed, and by how much each
    method's error lies below DT's. Call it again to go on after Ctrl-C, or to add seeds.

    Examples:
      rayrl-dt align tune_configs/alignment.yaml --seeds 0,1,2
      rayrl-dt align tune_configs/dt_hopper.yaml tune_configs/radt_hopper.yaml --jobs 2
      rayrl-dt align tune_configs/alignment.yaml --dataset recipe:pendulum-mixed --dataset recipe:reacher-mixed
    """
    from rayrl_dt.tuning.suite import run_suite
    from rayrl_dt.tuning.suite_page import write_suite_page
    from rayrl_dt.tuning.suite_runs import read_suite

    runs = read_suite(configs, out, seeds=_seeds(seeds), datasets=dataset or None, overrides=overrides or [])
    console.print(f"{len(runs)} runs in {out / 'runs'}, {jobs} at a time", soft_wrap=True, markup=False)
    with _Display() as display:
        failures = run_suite(runs, jobs=jobs, episodes_at_maximum=episodes_at_maximum, observe=display.show)
    for failure in failures:
        console.print(
            f"[red]✗[/red] {escape(str(failure.run.folder))}: {escape(failure.reason)}", soft_wrap=True
        )
    page = write_suite_page(runs, failures, out)
    if failures:
        leave_unfinished(f"{len(failures)} of {len(runs)} runs failed; the others:", page)
    first = quoted(*(run.folder for run in runs[:2]))
    finish(f"{len(runs)} runs compared:", page, then=f"rayrl-dt diagnose {first}")


class _Display:
    """A bar for all runs, and one for each that is under way; a line a run where there is no terminal to draw in."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True)
        self._all = self._bars.add_task("runs", total=None)
        self._tasks: dict[SuiteRun, TaskID] = {}
        self._ended = 0

    def __enter__(self) -> _Display:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, status: SuiteStatus) -> None:
        """Update the bars, and show those of the runs that are under way."""
        ended = status.done + status.failed
        self._bars.update(self._all, total=status.total, completed=ended)
        if not console.is_terminal and ended > self._ended:
            console.print(f"{ended} of {status.total} runs ended, {status.failed} of them failed")
        self._ended = ended
        for run in [run for run in self._tasks if run not in status.running]:
            self._bars.remove_task(self._tasks.pop(run))
        for run, step in status.running.items():
            if run not in self._tasks:
                name = f"{run.name} seed {run.values['debugging']['seed']}"
                self._tasks[run] = self._bars.add_task(escape(name), total=run.gradient_steps)
            self._bars.update(self._tasks[run], completed=step)


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        seeds = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f'--seeds is {text!r}; write whole numbers, as in "0,1,2"') from None
    if any(seed < 0 for seed in seeds):
        raise UserError(f"--seeds is {text!r}; seeds must not be negative")
    return seeds
