"""The first five minutes: data, a Decision Transformer, a return-aligned one, what both achieve when asked, a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayrl_dt import runs
from rayrl_dt.data import preview, sources
from rayrl_dt.evaluation.report import write_report

__all__ = ["CONFIG", "DATASET", "METHODS", "run"]

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
    },
    "evaluation": {"target_returns": "dataset:7", "episodes_per_target": 20, "evaluation_interval": 3},
}
"""Sized for two cores. The same as `tune_configs/dt_pendulum.yaml` and `radt_pendulum.yaml`."""


def run(
    out: Path,
    *,
    seed: int,
    progress: Callable[[], Any],
    say: Callable[[str], None],
    command: str | None = None,
) -> Path:
    """Runs the story; a second call goes on where the first was stopped.

    Args:
        out: folder for the runs and the report.
        seed: of everything.
        progress: makes an observer of a training run, used as a context.
        say: prints a line.
        command: the command line, for the record.

    Returns:
        The report page.
    """
    stages = len(METHODS) + 2
    say(f"[bold]1/{stages}[/bold] data: {DATASET} (scripted pendulum controllers of graded skill)")
    store = sources.load(DATASET)
    returns = store.episode_returns
    out.mkdir(parents=True, exist_ok=True)
    preview.plot(store, out / "data.png")
    say(
        f"    {store.num_episodes:,} episodes, {store.num_steps:,} steps, returns {returns.min():,.0f} to "
        f"{returns.max():,.0f}; histograms in {out / 'data.png'}"
    )
    folders = []
    for stage, (algorithm, title) in enumerate(METHODS.items(), start=2):
        say(f"[bold]{stage}/{stages}[/bold] training a {title}, and asking it for seven returns")
        folder = out / algorithm.lower()
        resume = runs.latest_checkpoint(folder) is not None
        values = {"algorithm": algorithm, **CONFIG, "debugging": {"seed": seed}}
        observer = progress()
        with observer:
            outcome = runs.train(values, folder, resume=resume, command=command, observer=observer)
        folders.append(folder)
        if not outcome.finished:
            say("    stopped, with a checkpoint; the same command goes on from there")
            break
    say(f"[bold]{stages}/{stages}[/bold] report")
    return write_report(folders, out / "report")
