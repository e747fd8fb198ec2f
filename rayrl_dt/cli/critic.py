"""`rayrl-dt critic` and `refine`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from rayrl_dt.cli.console import command_line, console, finish, quoted
from rayrl_dt.cli.options import OtherDataset, OtherEnv, Policy, TrustEnvironment, place
from rayrl_dt.cli.progress import progress_bar
from rayrl_dt.errors import UserError
from rayrl_dt.settings import as_number

if TYPE_CHECKING:
    from rayrl_dt.evaluation.refinement_grid import RefinementGrid
    from rayrl_dt.policy.refinement import WayToAct

__all__ = ["register"]

_Number = TypeVar("_Number", int, float)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(critic)
    app.command()(refine)


def critic(
    run: Policy,
    steps: Annotated[int, typer.Option(help="Gradient steps of the critic.")] = 20_000,
    lr: Annotated[float, typer.Option(help="Learning rate, constant.")] = 3e-4,
    gamma: Annotated[
        float, typer.Option(help="Discount; nearer to 1 where what counts comes hundreds of steps later.")
    ] = 0.99,
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
      rayrl-dt critic runs/hopper --steps 100000 --gamma 0.999 --seed 1
    """
    from rayrl_dt.critics.training import CriticTraining
    from rayrl_dt.interop.critics import add_critic

    training = CriticTraining(
        steps=steps, lr=lr, gamma=gamma, expectile=expectile, reward_scale=as_number(reward_scale)
    )
    with progress_bar("training") as progress:
        folder = add_critic(
            run, training=training, seed=seed, dataset=dataset, command=command_line(), progress=progress
        )
    finish(
        "critic:",
        folder / "critic.safetensors",
        # Which step sizes help hangs on the task, whatever the rewards' unit is: one that helps in a maze ruins Hopper.
        then=f"rayrl-dt refine {quoted(run)} --eta 1e-4,1e-3,1e-2 --n 1,10",
    )


def refine(
    run: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint or policy bundle, mostly with a critic in it.")
    ],
    eta: Annotated[
        str | None,
        typer.Option(help="Step sizes, with commas between them; 0.0001,0.001,0.01,0.1 by default."),
    ] = None,
    n: Annotated[
        str | None,
        typer.Option(
            "--n",
            help="Numbers of steps, with commas between them; 0,1,5,10,30 by default, and 0 is always run.",
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="Rules of the steps: plain, momentum, rmsprop, adam; plain,adam by default."),
    ] = None,
    check_n: Annotated[
        str | None,
        typer.Option(help="Double checks instead: numbers of returns asked for, as in 8,32; 32 by default."),
    ] = None,
    check_spread: Annotated[
        str | None,
        typer.Option(help="Double checks instead: spreads of those returns; 0.1,0.25,0.5 by default."),
    ] = None,
    check_mode: Annotated[
        str | None, typer.Option(help="Double checks instead: align, max or align,max; align by default.")
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Guidance instead, of policies trained with return_dropout: weights, as in 0,1.5,2,4; 1 is always run."
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Return to ask for: dataset:max, or one raw return.")
    ] = "dataset:max",
    episodes: Annotated[int, typer.Option(help="Episodes of each cell of the heat map.")] = 10,
    env: OtherEnv = None,
    trust_environment: TrustEnvironment = False,
    seed: Annotated[int, typer.Option(help="Seed of the episodes, the same in every cell.")] = 0,
    out: Annotated[Path | None, place(help="Folder to write the page to; RUN/refinement by default.")] = None,
) -> None:
    """Act in many ways on one checkpoint: heat maps, tables, one page, no training. Needs no Ray.

    They are action gradients. Options of double checks, or guidance, have those tried instead; options of several ways
    have them all tried, side by side.

    Examples:
      rayrl-dt refine runs/hopper
      rayrl-dt refine runs/hopper --eta 1e-4,1e-3,1e-2 --n 0,1,10 --rule plain,adam --episodes 20
      rayrl-dt refine runs/hopper --check-n 8,32 --check-spread 0.1,0.25 --check-mode align,max
      rayrl-dt refine runs/hopper --guidance 0,1.5,2,4
    """
    from rayrl_dt.evaluation.refinement_grid import action_gradients, double_checks, evaluate_grid
    from rayrl_dt.interop.bundle import Bundle
    from rayrl_dt.policy.guidance import Guidance
    from rayrl_dt.reports.refinement import write_refinement

    folder = out or run / "refinement"
    # Before minutes of work, not after.
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --out")
    checks = check_n, check_spread, check_mode
    ways: list[WayToAct] = []
    if (eta, n, rule) != (None,) * 3 or (*checks, guidance) == (None,) * 4:
        ways += action_gradients(
            _numbers("--eta", eta or "0.0001,0.001,0.01,0.1", float),
            _numbers("--n", n or "0,1,5,10,30", int),
            _names(rule or "plain,adam"),
        )
    if checks != (None,) * 3:
        ways += double_checks(
            _numbers("--check-n", check_n or "32", int),
            _numbers("--check-spread", check_spread or "0.1,0.25,0.5", float),
            _names(check_mode or "align"),
        )
    if guidance is not None:
        ways += [Guidance(weight) for weight in _numbers("--guidance", guidance, float)]
    bundle = Bundle.open(run)
    with progress_bar("evaluating") as progress:
        grid = evaluate_grid(
            bundle.trusting() if trust_environment else bundle,
            ways,
            target=target,
            episodes=episodes,
            env=env,
            seed=seed,
            progress=progress,
        )
    _show(grid)
    page = write_refinement(grid, folder)
    finish("heat map:", page, then=_next_command(run, grid, target, env, trust_environment))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(option: str, text: str, kind: Callable[[str], _Number]) -> list[_Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} is {text!r}; give {what} with commas between them, as in 1,5") from None


def _next_command(run: Path, grid: RefinementGrid, target: str, env: str | None, trusting: bool) -> str:
    """Return the command that confirms the best cell on other episodes; where none beats the control, a way on."""
    best = grid.best.settings
    if best is None:
        # Guidance asks no critic, so a longer one does not help.
        return (
            f"rayrl-dt critic {quoted(run)} --steps 100000"
            if grid.critic
            else f"rayrl-dt diagnose {quoted(run)}"
        )
    values = best.to_json()
    # The zetas are those of the grid, by default.
    short = {key: f"{value:g}" if isinstance(value, float) else value for key, value in values.items()}
    named = {key: short[key] for key in ("eta", "n", "rule", "spread", "mode") if key in short}
    settings = ",".join(f"{key}={value}" for key, value in named.items()) or short["weight"]
    where = "" if env is None else f" --env {quoted(env)}"
    where += " --trust-environment" if trusting else ""
    option = f"--{best.section.replace('_', '-')}"
    return f"rayrl-dt eval {quoted(run)} --targets={target} {option} {settings}{where} --seed {grid.seed + 1}"


def _show(grid: RefinementGrid) -> None:
    for sweep in grid.sweeps:
        panels, rows, columns = sweep.axes
        layout = sweep.layout
        sides = [name for name in (layout.panel, layout.row) if name]
        table = Table(
            *sides, *(f"{layout.column} = {each:g}" for each in columns), box=None, header_style="bold"
        )
        for panel, row in product(panels, rows):
            place = [each if isinstance(each, str) else f"{each:g}" for each in (panel, row) if each != ""]
            cells = (sweep.cell(panel, row, column) for column in columns)
            table.add_row(*place, *(f"{cell.mean:,.1f}" for cell in cells))
        console.print(table)
    better = sum(cell.mean > grid.control.mean for cell in grid.cells)
    control = "n = 0" if grid.guidance == 1 else f"guidance {grid.guidance:g} and n = 0"
    console.print(f"{better} of {len(grid.cells)} cells are above {control} of the same checkpoint")
    for warning in grid.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}", soft_wrap=True)
