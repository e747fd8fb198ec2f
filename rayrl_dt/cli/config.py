"""`rayrl-dt config`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rayrl_dt.cli.console import console, finish, show_table
from rayrl_dt.errors import UserError, one_of

if TYPE_CHECKING:
    from rayrl_dt.cli.config_reference import Key

__all__ = ["config"]

_LONGEST_DEFAULT = 30
_NARROWEST = 38


def config(
    algorithm: Annotated[
        str | None, typer.Argument(help="Algorithm to describe: DT, RADT, ...; names them all without one.")
    ] = None,
    sections: Annotated[
        list[str] | None, typer.Argument(help="Only these sections: training, evaluation, ...; all without.")
    ] = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Write a config file with every key to stdout.")
    ] = False,
) -> None:
    """List every key that a config file may have: its default, and what it is.

    Examples:
      rayrl-dt config
      rayrl-dt config OnlineDT
      rayrl-dt config OnlineDT online evaluation
      rayrl-dt config DT --yaml > my_dt.yaml
      rayrl-dt train my_dt.yaml --set training.lr=1e-4
    """
    from rayrl_dt.cli.config_reference import reference, summaries

    if algorithm is None:
        if as_yaml:
            raise UserError("--yaml writes the file of one algorithm; name it: rayrl-dt config DT --yaml")
        rows = [(name, escape(summary)) for name, summary in summaries().items()]
        show_table(("algorithm", "what it is"), rows)
        finish("done", then="rayrl-dt config DT")
        return
    if as_yaml and sections:
        raise UserError("--yaml writes every section; leave the names out")
    if as_yaml:
        from rayrl_dt.cli.config_template import template

        # Not the console, which would wrap the lines.
        typer.echo(template(algorithm), nl=False)
        return
    from rayrl_dt.runs.config_files import HEADER

    table = Table(box=None, header_style="bold")
    table.add_column("key: default", max_width=max(_NARROWEST, console.width // 3), overflow="fold")
    table.add_column("what it is")
    found = {section.name: section for section in reference(algorithm)}
    wanted = [one_of("SECTIONS", name, found) for name in sections or found]
    for name, summary in HEADER.items():
        if not sections:
            table.add_row(f"{name}:", summary)
    for section in map(found.__getitem__, wanted):
        table.add_row()
        table.add_row(f"[bold]{section.name}[/bold]", f"[bold]{escape(section.description)}[/bold]")
        ours = [key for key in section.keys if key.ours]
        rllibs = [key for key in section.keys if not key.ours]
        _add(table, ours, indent="  ")
        if ours and rllibs:
            table.add_row("  [dim]RLlib's own[/dim]")
        _add(table, rllibs, indent="  ", style="dim" if ours else None)
    console.print(table)
    then = f"rayrl-dt config {algorithm} --yaml > {algorithm.lower()}.yaml"
    finish("set a key in a file, or with --set section.key=value", then=then)


def _add(table: Table, keys: Sequence[Key], *, indent: str, style: str | None = None) -> None:
    """Add a row for each key, and below it those of the mapping that it takes."""
    for key in keys:
        default = getattr(key.default, "__name__", "?") if key.text is None else key.text
        if key.inner and key.default is not None:
            default = ""
        elif len(default) > _LONGEST_DEFAULT:
            default = f"{default[: _LONGEST_DEFAULT - 3]}..."
        table.add_row(f"{indent}{key.name}: {escape(default)}", escape(key.description), style=style)
        _add(table, key.inner, indent=f"{indent}  ", style=style)
