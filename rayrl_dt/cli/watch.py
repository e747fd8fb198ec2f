"""`rayrl-dt watch`."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rayrl_dt.cli.console import console, finish, quoted, table
from rayrl_dt.errors import number

__all__ = ["watch"]

_COLORS = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "red"}


def watch(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, sweeps, or folders that hold some; runs by default.", show_default=False
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print the table once, as is done where the output is no terminal.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Seconds between two looks at the folders.")] = 2.0,
) -> None:
    """Show where runs and sweeps stand, in a table that refreshes until Ctrl-C. Needs no Ray.

    E is the alignment error of an evaluation, R the return at its only target; the best one is the best checkpoint's.

    Examples:
      rayrl-dt watch
      rayrl-dt watch runs/dt_pendulum-seed1 runs/smoke-sweep --once
    """
    from rayrl_dt.interop.run_files import is_run
    from rayrl_dt.reports.overview import HEADINGS, Overview

    number("--seconds", seconds, least=0.1)
    overview = Overview(runs or [Path("runs")])

    def shown() -> Table:
        rows = [(*map(escape, row[:-1]), _colored(row[-1])) for row in overview.rows()]
        # What nobody fills takes no room.
        kept = [index for index, name in enumerate(HEADINGS) if not rows or any(row[index] for row in rows)]
        found = table([HEADINGS[index] for index in kept], [[row[index] for index in kept] for row in rows])
        for column in found.columns[1:]:
            column.no_wrap = True  # where the screen is narrow, names of runs fold
        return found

    if once or not console.is_terminal:
        console.print(shown())
        standings = overview.standings()
        run = next(
            (each.folder for each in standings if is_run(each.folder)), None
        )  # trials are on their sweep's page
        finish(f"{len(standings)} runs", then=None if run is None else f"rayrl-dt report {quoted(run)}")
        return
    with suppress(KeyboardInterrupt), Live(shown(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(shown(), refresh=True)


def _colored(state: str) -> str:
    color = _COLORS.get(state)
    return state if color is None else f"[{color}]{state}[/{color}]"
