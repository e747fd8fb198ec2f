"""The first five minutes: data, a Decision Transformer, what it achieves when asked, one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayrl_dt import runs
from rayrl_dt.data import preview, sources
from rayrl_dt.evaluation.report import write_report

__all__ = ["CONFIG", "DATASET", "run"]

DATASET = "recipe:pendulum-mixed"
CONFIG: dict[str, Any] = {
    "algorithm": "DT",
    "offline_data": {"dataset": DATASET},
    "rl_module": {"model_config": {"context_length": 10, "embed_dim": 64, "num_layers": 2}},
    "training": {
        "gradient_steps": 3_000,
        "gradient_steps_per_iteration": 500,
        "lr": 1e-3,
        "warmup_steps": 100,
    },
    "evaluation": {"target_returns": "dataset:7", "episodes_per_target": 20, "evaluation_interval": 2},
}
"""Sized for two cores. The same as `tune_configs/dt_pendulum.yaml`."""


def run(
    out: Path,
    *,
    seed: int,
    progress: Any,
    say: Callable[[str], None],
    command: str | None = None,
) -> Path:
    """Runs the story; a second call goes on where the first was stopped.

    Args:
        out: folder for the run and the report.
        seed: of everything.
        progress: an observer of the training run, used as a context.
        say: prints a line.
        command: the command line, for the record.

    Returns:
        The report page.
    """
    say(f"[bold]1/3[/bold] data: {DATASET} (scripted pendulum controllers of graded skill)")
    store = sources.load(DATASET)
    returns = store.episode_returns
    out.mkdir(parents=True, exist_ok=True)
    preview.plot(store, out / "data.png")
    say(
        f"    {store.num_episodes:,} episodes, {store.num_steps:,} steps, returns {returns.min():,.0f} to "
        f"{returns.max():,.0f}; histograms in {out / 'data.png'}"
    )
    say("[bold]2/3[/bold] training a Decision Transformer, and asking it for seven returns now and then")
    folder = out / "dt"
    values = {**CONFIG, "debugging": {"seed": seed}}
    with progress:
        runs.train(
            values,
            folder,
            resume=runs.latest_checkpoint(folder) is not None,
            command=command,
            observer=progress,
        )
    say("[bold]3/3[/bold] report")
    return write_report([folder], out / "report")
