"""`rayrl-dt critic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayrl_dt.cli.console import command_line, finish
from rayrl_dt.cli.data import counting

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command()(critic)


def critic(
    run: Annotated[Path, typer.Argument(help="run folder, checkpoint or policy bundle")],
    steps: Annotated[int, typer.Option(help="gradient steps")] = 20_000,
    expectile: Annotated[
        float, typer.Option(help="of V among the data's actions: 0.5 their mean, towards 1 the best of them")
    ] = 0.7,
    dataset: Annotated[str | None, typer.Option(help="other data than the run's own")] = None,
    seed: Annotated[int, typer.Option(help="of weights and batches")] = 0,
) -> None:
    """Train a critic on a policy's data (IQL) and keep it in the policy's bundle, to act with. Needs no Ray.

    Examples:
      rayrl-dt critic runs/hopper
      rayrl-dt critic runs/hopper --steps 100000 --seed 1
    """
    from rayrl_dt.critic.training import CriticTraining
    from rayrl_dt.interop.critics import add_critic

    training = CriticTraining(steps=steps, expectile=expectile)
    with counting("training") as progress:
        folder = add_critic(
            run, training=training, seed=seed, dataset=dataset, command=command_line(), progress=progress
        )
    finish(
        "critic:",
        folder / "critic.safetensors",
        then=f"rayrl-dt eval {run} --action-gradient eta=0.03,n=10,rule=plain",
    )
