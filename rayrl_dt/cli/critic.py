"""`rayrl-dt critic` and `refine`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from rayrl_dt.cli.console import command_line, console, finish
from rayrl_dt.cli.options import OtherDataset, OtherEnv, Policy, TrustEnvironment
from rayrl_dt.cli.progress import progress_bar
from rayrl_dt.errors import UserError
from rayrl_dt.settings import as_number

if TYPE_CHECKING:
    from rayrl_dt.evaluation.refinement_grid import RefinementGrid

__all__ = ["register"]

_Number = TypeVar("_Number", int, float)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(critic)
    app.command()(refine)


def critic(
    run: Policy,
    steps: Annotated[int, typer.Option(help="Gradient steps of the critic.")] = 20_000,
    expectile: Annotated[
        float,
        typer.Option(
            help="What V learns of the data's actions: 0.5 for their mean, towards 1 for the best of them."
        ),
    ] = 0.7,
    reward_scale: Annotated[
        str,
        typer.Option(
            help='Rewards are divided by it: a number, or "auto" for one that follows from the data.'
        ),
    ] = "auto",
    dataset: OtherDataset = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
) -> None:
    """Train a critic on a policy's data (IQL) and keep it in the policy's bundle, to act with. Needs no Ray.

    Examples:
      rayrl-dt critic runs/hopper
      rayrl-dt critic runs/hopper --steps 100000 --seed 1
    """
    from rayrl_dt.critics.training import CriticTraining
    from rayrl_dt.interop.critics import add_critic

    training = CriticTraining(steps=steps, expectile=expectile, reward_scale=as_number(reward_scale))
    with progress_bar("training") as progress:
        folder = add_critic(
            run, training=training, seed=seed, dataset=dataset, command=command_line(), progress=progress
        )
    finish(
        "critic:",
        folder / "critic.safetensors",
        # Which step sizes help hangs on the task, whatever the rewards' unit is: one that helps in a maze ruins Hopper.
        then=f"rayrl-dt refine {run} --eta 1e-4,1e-3,1e-2 --n 1,10",
    )


def refine(
    run: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint or policy bundle, with a critic in it.")
    ],
    eta: Annotated[str, typer.Option(help="Step sizes, with commas between them.")] = "0.0001,0.001,0.01,0.1",
    n: Annotated[
        str, typer.Option("--n", help="Numbers of steps, with commas between them; 0 is always run.")
    ] = "0,1,5,10,30",
    rule: Annotated[
        str, typer.Option(help="Rules of the steps: plain, momentum, rmsprop, adam.")
    ] = "plain,adam",
    target: Annotated[
        str, typer.Option(help="Return to ask for: dataset:max, or one raw return.")
    ] = "dataset:max",
    episodes: Annotated[int, typer.Option(help="Episodes of each cell of the heat map.")] = 10,
    env: OtherEnv = None,
    trust_environment: TrustEnvironment = False,
    seed: Annotated[int, typer.Option(help="Seed of the episodes, the same in every cell.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the page to; RUN/refinement by default.")
    ] = None,
) -> None:
    """Act with a critic by many action gradients: one heat map, one table, no training. Needs no Ray.

    Examples:
      rayrl-dt refine runs/hopper
      rayrl-dt refine runs/hopper --eta 1e-4,1e-3,1e-2 --n 0,1,10 --rule plain,adam --episodes 20
    """
    from rayrl_dt.evaluation.refinement_grid import evaluate_grid
    from rayrl_dt.interop.bundle import Bundle
    from rayrl_dt.reports.refinement import write_refinement

    folder = out or run / "refinement"
    # Before minutes of work, not after.
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --out")
    bundle = Bundle.open(run)
    with progress_bar("evaluating") as progress:
        grid = evaluate_grid(
            bundle.trusting() if trust_environment else bundle,
            etas=_numbers("--eta", eta, float),
            steps=_numbers("--n", n, int),
            rules=[name.strip() for name in rule.split(",")],
            target=target,
            episodes=episodes,
            env=env,
            seed=seed,
            progress=progress,
        )
    _show(grid)
    page = write_refinement(grid, folder)
    finish("heat map:", page, then=_next_command(run, grid, target, env, trust_environment))


def _numbers(option: str, text: str, kind: Callable[[str], _Number]) -> list[_Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} is {text!r}; give {what} with commas between them, as in 1,5") from None


def _next_command(run: Path, grid: RefinementGrid, target: str, env: str | None, trusting: bool) -> str:
    """Return the command that confirms the best cell on other episodes; where none beats n = 0, a longer critic."""
    best = grid.best.settings
    if best.idle:
        return f"rayrl-dt critic {run} --steps 100000"
    settings = f"eta={best.eta:g},n={best.n},rule={best.rule}"
    where = "" if env is None else f" --env {env}"
    where += " --trust-environment" if trusting else ""
    return (
        f"rayrl-dt eval {run} --targets={target} --action-gradient {settings}{where} --seed {grid.seed + 1}"
    )


def _show(grid: RefinementGrid) -> None:
    rules, etas, steps = grid.axes
    table = Table("rule", "eta", *(f"n = {n}" for n in steps), box=None, header_style="bold")
    for rule in rules:
        for eta in etas:
            cells = (grid.cell(rule, eta, n) for n in steps)
            table.add_row(rule, f"{eta:g}", *(f"{cell.mean:,.1f}" for cell in cells))
    console.print(table)
    better = sum(cell.mean > grid.control.mean for cell in grid.cells)
    console.print(f"{better} of {len(grid.cells)} cells are above n = 0 of the same checkpoint")
    for warning in grid.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}", soft_wrap=True)
