"""`rayrl-dt act`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayrl_dt.cli.console import finish, show_table
from rayrl_dt.cli.options import ContextLength, Guidance, OtherDataset, Policy, place
from rayrl_dt.cli.progress import progress_bar

__all__ = ["act"]


def act(
    run: Policy,
    out: Annotated[Path, place(help="Parquet file to write.")],
    targets: Annotated[
        str,
        typer.Option(
            help='Returns to ask for: "dataset:3", raw ones, "R1,R2,...", or "achieved" for each episode\'s own.'
        ),
    ] = "dataset:3",
    dataset: OtherDataset = None,
    workers: Annotated[int, typer.Option(help="Processes that act at once, at most.")] = 1,
    cpus: Annotated[float, typer.Option(help="CPUs that each of them takes.")] = 1.0,
    context_length: ContextLength = None,
    guidance: Guidance = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Ray cluster; policy and data must lie on storage that it shares."
        ),
    ] = None,
) -> None:
    """Write what a policy would do at each step of logged data, for several returns, with Ray Data.

    It sees the logged steps before each one, and steps in no environment.

    Examples:
      rayrl-dt act runs/hopper --out runs/hopper/actions.parquet
      rayrl-dt act runs/hopper --targets achieved --workers 8 --address auto --out /shared/actions.parquet
    """
    from rayrl_dt.deployment.along_data import write_actions

    with progress_bar("acting") as progress:
        found = write_actions(
            run,
            out,
            targets=targets,
            dataset=dataset,
            workers=workers,
            cpus=cpus,
            context_length=context_length,
            guidance=guidance,
            address=address,
            progress=progress,
        )
    rows = [
        (
            "its own" if each.target is None else f"{each.target:,.1f}",
            f"{each.steps:,}",
            f"{100 * each.difference:.1f}%",
        )
        for each in found
    ]
    show_table(("asked", "steps", "differs from the data by"), rows)
    finish("actions:", out)
