"""`rayrl-dt diagnose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from rayrl_dt.cli.console import console, finish, new_file, quoted, show_table
from rayrl_dt.cli.options import JsonFile, OtherDataset, OtherEnv, TrustEnvironment, place
from rayrl_dt.errors import UserError

if TYPE_CHECKING:
    from rayrl_dt.diagnosis.examine import Examination

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(diagnose)


def diagnose(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, checkpoints or policy bundles.")],
    targets: Annotated[
        str, typer.Option(help='Returns to ask for in rollouts: "dataset:3" or raw ones, "R1,R2,...".')
    ] = "dataset:3",
    episodes: Annotated[
        int, typer.Option(help="Episodes to run for each target; 0 leaves the rollouts out.")
    ] = 5,
    windows: Annotated[
        int, typer.Option(help="Windows of data that attention and sensitivity are measured on.")
    ] = 256,
    dataset: OtherDataset = None,
    env: OtherEnv = None,
    trust_environment: TrustEnvironment = False,
    out: Annotated[Path | None, place(help="Folder to write the page to; RUN/diagnosis by default.")] = None,
    json_file: JsonFile = None,
    seed: Annotated[int, typer.Option(help="Seed of windows, environments and sampled actions.")] = 0,
) -> None:
    """Show how policies use their return-to-go: attention, sensitivity, course of an episode, cost. Needs no Ray.

    Example: rayrl-dt diagnose runs/dt runs/radt --targets dataset:3 --episodes 10 --out runs/dt-radt
    """
    folder = out or runs[0] / "diagnosis"
    # Before minutes of work, not after.
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --out")
    from rayrl_dt.diagnosis.examine import examine
    from rayrl_dt.diagnosis.page import write_diagnosis

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loading", total=None)
        examination = examine(
            runs,
            targets=targets,
            episodes=episodes,
            num_windows=windows,
            dataset=dataset,
            env=env,
            trust_environment=trust_environment,
            seed=seed,
            progress=lambda what, done, total: progress.update(
                task, description=escape(what), completed=done, total=total or None
            ),
        )
    _show(examination)
    page = write_diagnosis(examination, folder)
    if json_file is not None:
        new_file(json_file).write_text(json.dumps(examination.to_json(), indent=2))
        finish("figures:", json_file)
    then = (
        None
        if json_file is not None
        else f"rayrl-dt export {quoted(runs[0])} --out {quoted(f'runs/{runs[0].resolve().name}-policy')}"
    )
    finish("diagnosis written:", page, then=then)


def _show(examination: Examination) -> None:
    """Print the headline figures of each policy, and what to keep in mind."""
    rows = []
    for policy in examination.policies:
        share = policy.attention.return_share if policy.attention else None
        felt = policy.sensitivity.at_data if policy.sensitivity else None
        figures = (share, felt, policy.left, policy.cost.acting_ms[1])
        cells = ("-" if value is None else f"{value:.3f}" for value in figures)
        rows.append((escape(policy.label), policy.backbone, *cells))
    headings = ("policy", "backbone", "return share", "sensitivity", "left at the end", "ms, 1 slot")
    show_table(headings, rows)
    for policy in examination.policies:
        for remark in policy.remarks:
            console.print(f"[yellow]![/yellow] {escape(f'{policy.label}: {remark}')}", soft_wrap=True)
