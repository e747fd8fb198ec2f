"""How commands speak: one console, one way to end, quiet libraries."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = [
    "command_line",
    "console",
    "errors",
    "finish",
    "leave_unfinished",
    "new_file",
    "quiet_libraries",
    "quoted",
    "show_table",
    "table",
]

# Ray resets the levels of its top loggers when it is imported; those of their children stay.
_NOISY = (
    "ray",
    "ray.rllib.algorithms.algorithm_config",
    "ray.rllib.core.rl_module.rl_module",
    "ray.rllib.utils.deprecation",
    "ray.tune.trainable.trainable",
    "ray.tune.trainable.util",
    "ray.tune.utils.util",
    "ray._common.deprecation",
    "gymnasium",
    "minari",
)
# Of what happens to learners and runners, it prints what they raised; the one line that the command ends with says it.
_SILENT = ("ray.rllib.utils.actor_manager",)

# A name like store:one: is no picture of a one.
console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)


def quiet_libraries() -> None:
    """Keep the notices of Ray, Gymnasium and others off the console; their errors still show."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def finish(what: str, where: str | Path | None = None, *, then: str | None = None) -> None:
    """End a command: what was done, where the output lies, what to type next."""
    _last_lines("[green]✓[/green]", what, where, then)


def leave_unfinished(what: str, where: str | Path | None = None, *, then: str | None = None) -> NoReturn:
    """End a command that was stopped, or of which a part failed, with status 1: what there is, and how to go on."""
    _last_lines("[yellow]![/yellow]", what, where, then)
    raise typer.Exit(1)


def _last_lines(mark: str, what: str, where: str | Path | None, then: str | None) -> None:
    place = "" if where is None else f" [bold]{escape(str(where))}[/bold]"
    console.print(f"{mark} {what}{place}", soft_wrap=True)
    if then is not None:
        console.print(f"  next: [cyan]{escape(then)}[/cyan]", soft_wrap=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table; its cells are rich markup."""
    found = Table(box=None, header_style="bold")
    for number, heading in enumerate(headings):
        # An id that is cut off cannot be copied, nor one of two lines; those stand in front.
        found.add_column(heading, overflow="fold", no_wrap=number == 0)
    for row in rows:
        found.add_row(*row)
    return found


def show_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; its cells are rich markup."""
    console.print(table(headings, rows))


def quoted(*paths: str | Path) -> str:
    """Return paths as a shell reads them back."""
    return shlex.join(map(str, paths))


def command_line() -> str:
    """Return the command as it was typed, for the record."""
    return shlex.join(["rayrl-dt", *sys.argv[1:]])


def new_file(path: Path) -> Path:
    """Return `path` with its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
