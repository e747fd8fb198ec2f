"""The first five minutes: data, DT and RADT asked for seven returns, TD3 finetuning from poor data, one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayrl_dt.data import sources
from rayrl_dt.errors import UserError
from rayrl_dt.interop.run_files import is_run, run_settings
from rayrl_dt.reports import data_set
from rayrl_dt.reports.run_report import write_report
from rayrl_dt.runs import loop as runs

__all__ = ["CONFIG", "DATASET", "FINETUNING", "METHODS", "run"]

DATASET = "recipe:pendulum-mixed"
METHODS = {"DT": "Decision Transformer", "RADT": "Return-Aligned Decision Transformer"}
CONFIG: dict[str, Any] = {
    "offline_data": {"dataset": DATASET},
    "rl_module": {"model_config": {"context_length": 10, "embed_dim": 64, "num_layers": 2}},
    "training": {
        "gradient_steps": 3_000,
        "gradient_steps_per_iteration": 500,
        "lr": 1e-3,
        "lr_decay": "cosine",
        "warmup_steps": 100,
        "return_scale": 1000,
    },
    "evaluation": {"target_returns": "dataset:7", "episodes_per_target": 20, "evaluation_interval": 3},
}
"""Sized for two cores. The same as `tune_configs/dt_pendulum.yaml` and `radt_pendulum.yaml`."""
FINETUNING: dict[str, Any] = {
    "algorithm": "OnlineDT",
    "name": "TD3+ODT from poor data",
    "offline_data": {"dataset": DATASET, "below_return": -900},
    "rl_module": {
        "model_config": {
            "context_length": 5,
            "embed_dim": 64,
            "num_layers": 2,
            "num_heads": 1,
            "timestep_embedding": "learned",
        }
    },
    "training": {"lr": 1e-3, "warmup_steps": 250, "gradient_steps_per_iteration": 250, "return_scale": 1000},
    "online": {
        "reward_scale": 1,
        "alpha": 1.0,
        "pretrain_steps": 500,
        "env_steps": 4_800,
        "env_steps_per_iteration": 400,
        "updates_per_iteration": 150,
    },
    "evaluation": {"target_returns": [-150], "episodes_per_target": 20, "evaluation_interval": 2},
}
"""The critic's gradient weighs ten times what the paper gives it, so that a minute shows what it does."""


def run(
    out: Path,
    *,
    seed: int,
    progress: Callable[[], Any],
    say: Callable[[str], None],
    command: str | None = None,
) -> Path | None:
    """Run the story; a second call goes on where the first was stopped.

    Args:
        out: folder for the runs and the report.
        seed: of weights, batches and episodes; the data are the recipe's.
        progress: makes an observer of a training run, used as a context.
        say: prints a line.
        command: the command line, for the record.

    Returns:
        The report page; None if it was stopped before the end.

    Raises:
        UserError: the folder was begun with another seed.
    """
    stories = [
        (
            algorithm.lower(),
            f"training a {title}, and asking it for seven returns",
            {"algorithm": algorithm, **CONFIG},
        )
        for algorithm, title in METHODS.items()
    ]
    poor = "finetuning online with a critic, from the episodes below -900 alone"
    stories.append(("td3_odt", poor, FINETUNING))
    _check_seed([out / name for name, *_ in stories], seed)
    stages = len(stories) + 2
    say(f"[bold]1/{stages}[/bold] data: {DATASET} (scripted pendulum controllers of graded skill)")
    store = sources.load(DATASET)
    returns = store.episode_returns
    out.mkdir(parents=True, exist_ok=True)
    data_set.plot(store, out / "data.png")
    say(
        f"    {store.num_episodes:,} episodes, {store.num_steps:,} steps, returns {returns.min():,.0f} to "
        f"{returns.max():,.0f}; histograms in {out / 'data.png'}"
    )
    folders = []
    for stage, (name, what, config) in enumerate(stories, start=2):
        say(f"[bold]{stage}/{stages}[/bold] {what}")
        folder = out / name
        resume = is_run(folder)
        values = {**config, "debugging": {"seed": seed}}
        observer = progress()
        with observer:
            outcome = runs.train(values, folder, resume=resume, command=command, observer=observer)
        folders.append(folder)
        if not outcome.finished:
            return None
    say(f"[bold]{stages}/{stages}[/bold] report")
    return write_report(folders, out / "report")


def _check_seed(folders: list[Path], seed: int) -> None:
    """Refuse to go on with another seed than the runs that are there."""
    for folder in filter(is_run, folders):
        first = run_settings(folder, "debugging").get("seed", seed)
        if first != seed:
            raise UserError(
                f"--seed is {seed}, and {folder} was begun with {first}; give --seed {first}, or another --out"
            )
