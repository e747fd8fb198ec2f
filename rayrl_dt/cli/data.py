"""`rayrl-dt data`: list, make, preview and import data sets."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from rayrl_dt.cli.console import console, finish, new_file, show_table
from rayrl_dt.cli.options import place
from rayrl_dt.cli.progress import progress_bar
from rayrl_dt.errors import UserError

__all__ = ["app"]

app = typer.Typer(help="List, make, preview and import data sets.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Show the local data sets and the recipes that can make more.

    Example: rayrl-dt data list
    """
    from rayrl_dt.data import recipes
    from rayrl_dt.data.readers import minari_io

    found = minari_io.list_local()
    if found:
        rows = [
            (
                escape(f"minari:{item['id']}"),
                f"{item['episodes']:,}",
                f"{item['steps']:,}",
                escape(str(item["env"] or "unknown")),
                "?" if item["size_mb"] is None else f"{item['size_mb']:,.1f}",
            )
            for item in found
        ]
        show_table(("data set", "episodes", "steps", "environment", "MB"), rows)
    else:
        console.print("no local Minari data sets yet")
    known = map(recipes.get, recipes.names())
    makes = [(recipe.name, recipe.dataset_id, recipe.description) for recipe in known]
    show_table(("recipe", "makes", "what it is"), makes)
    finish("done", then="rayrl-dt data preview recipe:pendulum-mixed")


@app.command()
def make(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, one of `rayrl-dt data list`.")],
    seed: Annotated[int, typer.Option(help="Seed of the behavior; the same seed makes the same data.")] = 0,
    episodes: Annotated[
        int | None, typer.Option(help="Number of episodes; the recipe's own by default.")
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="Environment to train in, for the recipe `trained`.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Environment steps to train for, for the recipe `trained`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the data set if it is there.")] = False,
) -> None:
    """Make a data set on this machine: scripted behaviors, or a behavior trained with RLlib's SAC.

    Examples:
      rayrl-dt data make pendulum-mixed
      rayrl-dt data make trained --env Hopper-v5 --steps 200000
    """
    from rayrl_dt.data import recipes

    options: dict[str, Any] = {"env": env, "steps": steps, "episodes": episodes}
    given = {name: value for name, value in options.items() if value is not None}
    with progress_bar(recipe) as progress:
        made = recipes.make(recipe, seed=seed, overwrite=overwrite, progress=progress, **given)
    for dataset_id in [made] if isinstance(made, str) else made:
        finish("data set:", f"minari:{dataset_id}", then=f"rayrl-dt data preview minari:{dataset_id}")


@app.command()
def preview(
    dataset: Annotated[
        str, typer.Argument(help='Data source: "minari:ID", "d4rl:FILE", "recipe:NAME" or "store:DIR".')
    ],
    out: Annotated[
        Path | None, place(help="PNG file of the histograms; runs/previews/SOURCE.png by default.")
    ] = None,
) -> None:
    """Print statistics and write return, length and action histograms.

    Example: rayrl-dt data preview recipe:pendulum-mixed --out runs/pendulum.png
    """
    from rayrl_dt.data import sources
    from rayrl_dt.data.preview import statistics as statistics_of
    from rayrl_dt.reports.data_set import plot

    with console.status(f"reading {escape(dataset)}..."):
        store = sources.load(dataset)
        statistics = statistics_of(store)
    table = Table(box=None, show_header=False)
    for key in ("source", "environment", "episodes", "steps", "terminated_fraction"):
        table.add_row(key, _text(statistics[key]))
    for key in ("returns", "lengths"):
        values = statistics[key]
        names = ("mean", "std", "min", "p5", "p50", "p95", "max")
        table.add_row(key, "  ".join(f"{name} {values[name]:,.4g}" for name in names))
    table.add_row(
        "observations", f"{statistics['observations']['shape']} {statistics['observations']['dtype']}"
    )
    actions = statistics["actions"]
    choices = [actions["counts"]] if actions["kind"] == "discrete" else actions.get("choices", [])
    for counts in choices:
        table.add_row("actions", "  ".join(f"{action}: {count:,}" for action, count in counts.items()))
    if actions["kind"] == "continuous":
        size, share = len(actions["dimensions"]), 100 * actions["at_bounds"]
        table.add_row("actions", f"{size} continuous dimensions, {share:.1f}% at their bounds")
    table.add_row("reference scores", escape(statistics["reference_note"]))
    console.print(table)
    for note in statistics["notes"]:
        console.print(f"note: {note}", markup=False)
    picture = out or Path("runs/previews") / f"{dataset.replace(':', '-').replace('/', '-')}.png"
    if picture.suffix.lower() != ".png":
        raise UserError(f"--out {picture} must end in .png")
    then = _train_command(dataset, known_env=store.info.env_spec is not None)
    finish("histograms:", plot(store, new_file(picture)), then=then)


def _train_command(dataset: str, *, known_env: bool) -> str:
    """Return the command that trains a small Decision Transformer on a data set."""
    if dataset == "recipe:pendulum-mixed":
        return "rayrl-dt train tune_configs/dt_pendulum.yaml"
    command = ["rayrl-dt", "train", "tune_configs/dt.yaml", "--dataset", dataset]
    if not known_env:
        command += ["--set", "environment.env=ID"]
    name = Path(dataset.rpartition(":")[2].strip("/").replace("/", "-")).stem
    return shlex.join([*command, "--out", f"runs/dt-{name}"])


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help='Data source to convert: "d4rl:FILE.hdf5" or any other.')],
    as_: Annotated[str, typer.Option("--as", help="Minari id to give it, as in namespace/name-v0.")],
    author: Annotated[str, typer.Option(help="Name of who made the data.")] = "unknown",
    overwrite: Annotated[bool, typer.Option(help="Replace the data set if it is there.")] = False,
) -> None:
    """Convert a data set to Minari's format, so that other tools can read it.

    Example: rayrl-dt data import d4rl:hopper_medium-v2.hdf5 --as d4rl/hopper-medium-v2
    """
    from rayrl_dt.data import sources
    from rayrl_dt.data.readers import minari_io
    from rayrl_dt.data.scores import recorded_scores
    from rayrl_dt.envs.packed import Packed

    with console.status(f"reading {escape(source)}..."):
        store = sources.load(source)
        if isinstance(store.info.observation_space, Packed):
            raise UserError(
                f"{source} holds pictures with numbers beside them, packed into bytes that other tools cannot tell "
                "apart; use it as it is, or give them the data that it was made from"
            )
        low, high = recorded_scores(store.info) or (None, None)
        dataset_id = minari_io.write(
            as_,
            (store.trajectory(episode) for episode in range(store.num_episodes)),
            observation_space=store.info.observation_space,
            action_space=store.info.action_space,
            env_spec=store.info.env_spec,
            author=author,
            algorithm_name=str(store.info.metadata.get("algorithm_name", "unknown")),
            description=f"Imported by rayrl_dt from {source}",
            ref_min_score=low,
            ref_max_score=high,
            evaluation_spec=store.info.evaluation_spec,
            overwrite=overwrite,
        )
    finish("data set:", f"minari:{dataset_id}", then=f"rayrl-dt data preview minari:{dataset_id}")


def _text(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return escape(str(value))
