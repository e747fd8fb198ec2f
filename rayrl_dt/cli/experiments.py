"""`rayrl-dt experiment`: small experiments of the papers, about a minute each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from rayrl_dt.cli.console import console, finish, show_table
from rayrl_dt.cli.options import OtherEnv, TrustEnvironment, place
from rayrl_dt.cli.progress import progress_bar

__all__ = ["app", "register"]

app = typer.Typer(
    help="Run a small experiment of the papers (~1 minute on one core).",
    no_args_is_help=True,
)

Out = Annotated[
    Path | None,
    place(
        help="Folder to write the report to, without a result of other options; runs/NAME-seedN by default."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of data, weights and batches.")]
Steps = Annotated[int | None, typer.Option(help="Gradient steps; the experiment's own number by default.")]


def register(program: typer.Typer) -> None:
    """Add the commands to the program."""
    program.add_typer(app, name="experiment")


@app.command("shortest-path")
def shortest_path(out: Out = None, seed: Seed = 0, steps: Steps = None) -> None:
    """Find shortest paths in a graph after seeing nothing but random walks (section 1 of the paper).

    Examples:
      rayrl-dt experiment shortest-path
      rayrl-dt experiment shortest-path --seed 3 --out runs/graph-3
    """
    from rayrl_dt.experiments import shortest_path as experiment

    result, page = _run(experiment, "shortest-path", out, "training", seed=seed, steps=steps)
    rows = [
        (name, f"{row['mean_steps']:.2f}", *(f"{100 * row[key]:.1f}%" for key in ("missed", "shortest")))
        for name, row in result["paths"].items()
    ]
    show_table(("paths", "mean steps", "missed", "shortest"), rows)
    console.print(f"{100 * result['absent_from_data']:.1f}% of the generated paths are absent from the data")
    finish("report:", page, then="rayrl-dt experiment critic")


@app.command()
def critic(out: Out = None, seed: Seed = 0, steps: Steps = None) -> None:
    """Let a Decision Transformer predict success while an episode of Key-to-Door runs (section 5 of the paper).

    Examples:
      rayrl-dt experiment critic
      rayrl-dt experiment critic --seed 3 --out runs/critic-3
    """
    from rayrl_dt.experiments import return_critic as experiment

    result, page = _run(experiment, "critic", out, "training", seed=seed, steps=steps)
    kinds = result["kinds"]
    moments = list(next(iter(kinds.values()))["at"])
    rows = [
        (name, *(f"{100 * share:.1f}%" for share in row["at"].values()), f"{row['episodes']:,}")
        for name, row in kinds.items()
    ]
    show_table(("predicted success", *moments, "episodes"), rows)
    finish("report:", page, then="rayrl-dt experiment shortest-path")


@app.command("vitamin-bandit")
def vitamin_bandit(
    out: Out = None,
    seed: Seed = 0,
    epochs: Annotated[
        int | None, typer.Option(help="Online epochs; 40 by default, where the paper has 16.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions of each method; 20 by default.")] = None,
) -> None:
    """Count how often each loss of online finetuning finds the top of a bandit (the toy example of TD3+ODT).

    Examples:
      rayrl-dt experiment vitamin-bandit
      rayrl-dt experiment vitamin-bandit --seed 3 --epochs 16 --out runs/bandit-3
    """
    from rayrl_dt.experiments import vitamin_bandit as experiment

    result, page = _run(
        experiment, "vitamin-bandit", out, "online epochs", seed=seed, epochs=epochs, seeds=seeds
    )
    counted = list(next(iter(result["methods"].values()))["successes"])
    rows = [
        (name, *(f"{count} / {result['seeds']}" for count in row["successes"].values()))
        for name, row in result["methods"].items()
    ]
    show_table(("successes", *(f"{epoch} epochs" for epoch in counted)), rows)
    finish("report:", page, then="rayrl-dt finetune --help")


@app.command("action-gradient")
def action_gradient(out: Out = None, seed: Seed = 0, steps: Steps = None) -> None:
    """Go beyond the data with a critic, in one state: DT, TP, PG and AG on ten seeds (Action Gradient paper).

    Examples:
      rayrl-dt experiment action-gradient
      rayrl-dt experiment action-gradient --seed 100 --out runs/bandit-100
    """
    from rayrl_dt.experiments import action_bandit as experiment

    result, page = _run(experiment, "action-gradient", out, "seeds", seed=seed, steps=steps)
    rows = [
        (name, *(f"{row[key]:.3f}" for key in ("mean", "std", "min")))
        for name, row in result["methods"].items()
    ]
    show_table(("method", "mean reward", "± std", "lowest"), rows)
    console.print(f"best reward in the data {result['data_best']:.3f}")
    finish("report:", page, then="rayrl-dt critic RUN")


@app.command("align-offline")
def align_offline(
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--run", help="A trained policy to judge, several times for several; small ones by default."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Data to judge on: each run's own by default; recipe:pendulum-mixed for the small ones, which learn "
            "from it."
        ),
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Gradient steps of each small policy, 1500 by default; each estimate has four times as many."
        ),
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes of each target; 10 by default.")] = None,
    env: OtherEnv = None,
    trust_environment: TrustEnvironment = False,
) -> None:
    """Estimate alignment errors from logged data alone, and see in the environment whether they are right (minutes).

    Examples:
      rayrl-dt experiment align-offline
      rayrl-dt experiment align-offline --run runs/dt_pendulum-seed0 --run runs/radt_pendulum-seed0
    """
    from rayrl_dt.experiments import align_offline as experiment

    result, page = _run(
        experiment,
        "align-offline",
        out,
        "policies",
        seed=seed,
        steps=steps,
        dataset=dataset,
        runs=tuple(runs) if runs else None,
        episodes=episodes,
        env=env,
        trust_environment=trust_environment,
    )
    keys = ("error", "estimated_error", "miss")
    rows = [(escape(name), *(f"{row[key]:,.1f}" for key in keys)) for name, row in result["policies"].items()]
    show_table(("policy", "measured error", "estimated error", "miss"), rows)
    verdict = "holds" if result["holds"] else "does not hold"
    console.print(
        f"the estimate {verdict}: it misses by {result['miss']:,.1f}, the target itself by "
        f"{result['miss_of_the_target']:,.1f}, the data's mean by {result['miss_of_the_mean']:,.1f}"
    )
    finish("report:", page, then="rayrl-dt align --help")


def _run(
    experiment: Any, name: str, out: Path | None, counted: str, **options: Any
) -> tuple[dict[str, Any], Path]:
    """Run an experiment with the options that were given; return its result and its page."""
    folder = out or Path("runs") / f"{name}-seed{options['seed']}"
    given = {key: value for key, value in options.items() if value is not None}
    with progress_bar(counted) as progress:
        return experiment.run(folder, progress=progress, **given), folder / "report.html"
