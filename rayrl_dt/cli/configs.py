"""`rayrl-dt configs`: the config files that come with the package."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rayrl_dt.cli.console import console, finish, quoted, show_table
from rayrl_dt.cli.options import place

__all__ = ["app"]

app = typer.Typer(
    help="The config files that come with rayrl_dt: list them, copy them.", no_args_is_help=True
)


@app.command("list")
def list_configs() -> None:
    """List the shipped config files, each with the first sentence of its comment.

    Every command that reads a config file takes their names, as in `rayrl-dt train dt_pendulum`.

    Example: rayrl-dt configs list
    """
    from rayrl_dt.runs.shipped_configs import shipped_configs

    show_table(
        ["config", "what it is"], [[name, escape(_purpose(path))] for name, path in shipped_configs().items()]
    )
    console.print("  next: rayrl-dt configs copy NAME, or rayrl-dt train NAME")


@app.command("copy")
def copy_configs(
    names: Annotated[list[str], typer.Argument(help="Which ones, as `rayrl-dt configs list` names them.")],
    to: Annotated[Path, place(help="Folder to copy into; made if it is not there.")] = Path(),
) -> None:
    """Copy shipped config files, to be changed.

    Nothing is written where a file of that name exists.

    Example: rayrl-dt configs copy dt_pendulum radt_pendulum --to my_configs
    """
    from rayrl_dt.errors import UserError, one_of
    from rayrl_dt.runs.shipped_configs import shipped_configs

    shipped = shipped_configs()
    wanted = {name: to / f"{Path(name).stem}.yaml" for name in names}
    for name, target in wanted.items():
        one_of("NAME", Path(name).stem, list(shipped))
        if target.exists():
            raise UserError(f"{target} exists already; name another folder with --to, or move it away")
    to.mkdir(parents=True, exist_ok=True)
    for target in wanted.values():
        target.write_bytes(shipped[target.stem].read_bytes())
    first = next(iter(wanted.values()))
    finish(f"copied {len(wanted)} to", first.parent, then=f"rayrl-dt train {quoted(first)}")


def _purpose(path: Path) -> str:
    lines = itertools.takewhile(
        lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()
    )
    return " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".")
