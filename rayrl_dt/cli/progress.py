"""Live progress: a plain bar, and that of a training run with steps, loss, steps/s and time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, SupportsFloat

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rayrl_dt.cli.console import console
from rayrl_dt.cores import busy

__all__ = ["TrainingProgress", "progress_bar"]


_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar that the returned function moves, given (done, total); a log gets a line now and then."""
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(escape(what), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _lines(what: str) -> Callable[[int, int], None]:
    """Return a function that prints how far the work is, seldom enough for short work to print nothing."""
    printed = time.monotonic()

    def moved(done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= _SECONDS_BETWEEN_LINES:
            console.print(f"{what}: {done:,} of {total:,}", soft_wrap=True, markup=False)
            printed = now

    return moved


class TrainingProgress:
    """Shows a run; implements `rayrl_dt.runs.iterations.Observer`. Use it as a context around the run."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:.1f} steps/s"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, loss=float("nan"), rate=0.0)
        self._window: deque[tuple[float, int]] = deque(maxlen=51)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, algorithm: Any) -> None:
        """Say what is trained on what, and what would slow it down."""
        import torch

        config = algorithm.config
        store = algorithm.offline_data.store
        console.print(
            f"[bold]{type(algorithm).__name__}[/bold] {algorithm.num_parameters():,} parameters on "
            f"{escape(config.dataset)}: {store.num_episodes:,} episodes, {store.num_steps:,} steps",
            soft_wrap=True,
        )
        note = busy(torch.get_num_threads())
        if note is not None and config.num_learners == 0:
            console.print(f"[yellow]![/yellow] {note}", soft_wrap=True)
        self._progress.reset(
            self._task,
            total=config.gradient_steps,
            completed=algorithm.gradient_steps,
            description="training",
            loss=float("nan"),
            rate=0.0,
        )

    def stepped(self, gradient_step: int, loss: SupportsFloat) -> None:
        """Move the bar."""
        self._window.append((time.perf_counter(), gradient_step))
        (begin, first), (end, last) = self._window[0], self._window[-1]
        rate = (last - first) / (end - begin) if end > begin else 0.0
        self._progress.update(self._task, completed=gradient_step, loss=loss, rate=rate)

    def iterated(self, record: Mapping[str, Any]) -> None:
        """Print the headline metrics of an iteration."""
        self._window.clear()
        self._progress.update(self._task, completed=record["gradient_steps"])
        parts = [
            f"step {record['gradient_steps']:>7,}",
            f"loss {record['loss']:.4f}",
            f"{record['steps_per_s']:.1f} steps/s",
        ]
        if record.get("phase") == "online":
            parts += _finetuning(record)
        evaluation = record.get("evaluation")
        if evaluation is not None:
            highest = max(evaluation["targets"], key=lambda item: item["target"])
            asked = f" at {highest['target']:,.4g}" if len(evaluation["targets"]) > 1 else ""
            parts.append(f"return {highest['return_mean']:,.1f}{asked}")
            if evaluation["alignment_error"] is not None:
                parts.append(f"alignment error {evaluation['alignment_error']:,.4g}")
            if evaluation["spearman"] is not None:
                parts.append(f"Spearman {evaluation['spearman']:.2f}")
        console.print("  ".join(parts), soft_wrap=True)


def _finetuning(record: Mapping[str, Any]) -> list[str]:
    """Describe how collection and updates go together; an asynchronous iteration may have brought no episode yet."""
    parts = [f"{record['env_steps']:,} env steps"]
    if record["env_steps_per_s"] is not None:
        parts[0] += f" ({record['env_steps_per_s']:,.0f}/s)"
    if record["collected_return"] is not None:
        parts.append(f"collected return {record['collected_return']:,.1f}")
    if record["update_to_data"] is not None:
        parts.append(f"updates/step {record['update_to_data']:.2f}")
    if record["policy_lag_max"] is not None:
        parts.append(f"policy lag {record['policy_lag_mean']:.0f} (at most {record['policy_lag_max']})")
    parts.append(f"replay {record['replay_episodes']:,} episodes")
    if record["runner_restarts"]:
        parts.append(f"runners restarted {record['runner_restarts']}")
    return parts
