"""`rayrl-dt tune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rayrl_dt.cli.console import console, finish, leave_unfinished, quoted
from rayrl_dt.cli.options import Dataset, Overrides, TrustCheckpoint, chosen_data

__all__ = ["tune"]


def tune(
    config: Annotated[Path, typer.Argument(help="YAML file with a tune section, as in tune_configs/.")],
    samples: Annotated[
        int | None,
        typer.Option(
            help="Draws, each run at every point of the grids and with every seed; the config's own number by default."
        ),
    ] = None,
    dataset: Dataset = None,
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder of the sweep; runs/CONFIG-sweep by default. With a URI, as in s3://bucket/NAME, trials are "
            "kept there, and runs/NAME has the table and the page."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Run the trials of the folder that did not finish, with the settings it began with. Their checkpoints "
            "are pickles, which run code of whoever wrote them.",
        ),
    ] = False,
    trust_checkpoint: TrustCheckpoint = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Ray cluster; --out must lie on storage that its nodes share, or be a URI."
        ),
    ] = None,
) -> None:
    """Search a config's spaces with Ray Tune. Ctrl-C keeps what is there; --resume goes on.

    The folder gets a table (results.json), a page (sweep.html) and the best policy (policy/). A file that names a
    trained run instead of an algorithm searches the action gradient that it acts with, without training.

    Examples:
      rayrl-dt tune tune_configs/smoke.yaml
      rayrl-dt tune tune_configs/alpha_online.yaml --samples 16 --out runs/alpha-sweep
      rayrl-dt tune tune_configs/alpha_online.yaml --out runs/alpha-sweep --resume
      rayrl-dt tune tune_configs/action_gradient.yaml --set run=runs/hopper
      rayrl-dt tune tune_configs/radt_offline.yaml --address auto --out /mnt/shared/runs/radt-sweep
      rayrl-dt tune tune_configs/radt_offline.yaml --address auto --out s3://bucket/runs/radt-sweep
    """
    from rayrl_dt.runs.config_files import apply_overrides, read_yaml
    from rayrl_dt.runs.remote_copy import working_folder
    from rayrl_dt.tuning.conclusion import SWEEP
    from rayrl_dt.tuning.remote_sweep import RemoteSweep
    from rayrl_dt.tuning.sweep import run_sweep
    from rayrl_dt.tuning.sweep_spec import read_sweep

    folder, uri = working_folder(out, Path("runs") / f"{config.stem}-sweep")
    remote = None if uri is None else RemoteSweep(uri, folder)
    if resume and remote is not None:
        remote.fetch()
    begun = folder / SWEEP
    values = read_yaml(begun if resume and begun.is_file() else config)
    changes = [*chosen_data(dataset), *(overrides or [])]
    spec = read_sweep(apply_overrides(values, changes), default_name=config.stem, samples=samples)
    outcome = run_sweep(
        spec, folder, resume=resume, trust_checkpoint=trust_checkpoint, address=address, remote=remote
    )
    failed = [trial for trial in outcome.trials if trial.status == "failed"]
    if outcome.cost is not None and outcome.cost["wall_seconds"] > 0:
        wall, inside = outcome.cost["wall_seconds"], outcome.cost["trial_seconds"]
        console.print(
            f"{wall:,.0f} s; the trials' own compute is {inside:,.0f} s, {inside / wall:.1f} trials at a time"
        )
    console.print(f"table: {outcome.table}", soft_wrap=True, markup=False)
    if outcome.command is not None:
        console.print(f"best policy: {outcome.bundle}", soft_wrap=True, markup=False)
        console.print(f"best trial: {outcome.command}", soft_wrap=True, markup=False)
    if not outcome.finished:
        done = sum(trial.status == "finished" for trial in outcome.trials)
        what = f"{done} of {outcome.expected} trials finished, {len(failed)} failed; so far:"
        options = ["--address", address] if address is not None else []
        resume_command = ["rayrl-dt", "tune", str(config), *options, "--out", out or str(folder), "--resume"]
        leave_unfinished(what, outcome.page, then=shlex.join(resume_command))
    evaluate = None if outcome.bundle is None else f"rayrl-dt eval {quoted(outcome.bundle)}"
    finish(
        f"{len(outcome.trials)} trials:",
        outcome.page,
        then=evaluate if spec.run is None else outcome.command,
    )
