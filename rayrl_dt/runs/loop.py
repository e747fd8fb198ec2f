"""A single training run: its folder, its loop, and how it resumes.

A run folder holds `config.yaml` (what was chosen, with the environment), `run.json` (command, versions, data),
`metrics.jsonl` (a line per iteration), `checkpoints/N/` (RLlib checkpoint of gradient step N with its policy bundle),
`policy/` (the newest bundle), `evaluations/` (`last.json`, `best.json`) and TensorBoard events.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.cql import CONSERVATIVE_GAP
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.evaluation import ALIGNMENT
from rayrl_dt.algorithms.learner import GRAD_NORM, GRADIENT_STEPS, LEARNING_RATE, LOSS
from rayrl_dt.algorithms.old_checkpoints import check_resumable
from rayrl_dt.algorithms.online.config import OnlineConfig
from rayrl_dt.algorithms.online.learner import online_metrics
from rayrl_dt.algorithms.session import start_ray
from rayrl_dt.errors import number
from rayrl_dt.interop.run_files import CONFIG
from rayrl_dt.runs.checkpoints import latest_checkpoint, prune_checkpoints, write_checkpoint, writing
from rayrl_dt.runs.config_files import build_config
from rayrl_dt.runs.inputs import check_folder, keep_bundle, replace_key
from rayrl_dt.runs.interrupts import on_interrupt
from rayrl_dt.runs.records import write_yaml
from rayrl_dt.runs.run_log import RunLog

__all__ = ["CHECKPOINT_MINUTES", "Observer", "RunOutcome", "train"]

CHECKPOINT_MINUTES = 10.0
"""What a lost process may cost, where no evaluation writes a checkpoint more often."""


class Observer(Protocol):
    """What a caller may watch of a run."""

    def started(self, algorithm: SequenceAlgorithm) -> None:
        """Take note that the algorithm is built."""

    def stepped(self, gradient_step: int, loss: float) -> None:
        """Take note of a gradient step (local learner only)."""

    def iterated(self, record: Mapping[str, Any]) -> None:
        """Take note of an iteration; `record` is its line in `metrics.jsonl`."""


@dataclass
class RunOutcome:
    """How a run ended.

    Attributes:
        folder: the run folder.
        gradient_steps: taken in total.
        finished: False if it was interrupted; resume it.
        last: the last iteration's record.
    """

    folder: Path
    gradient_steps: int
    finished: bool
    last: dict[str, Any] = field(default_factory=dict)


def train(
    values: Mapping[str, Any],
    folder: Path,
    *,
    resume: bool = False,
    command: str | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    observer: Observer | None = None,
) -> RunOutcome:
    """Train one config to its last gradient step, or until Ctrl-C.

    A checkpoint is written after each iteration with an evaluation, after the first iteration that ends
    `checkpoint_minutes` after the last one, at the end and on Ctrl-C; the last two and the best are kept. A second
    Ctrl-C stops at once.

    Args:
        values: the config file's content.
        folder: the run folder; must be new, unless `resume`.
        resume: continue from the folder's newest whole checkpoint; from the start, if the run was lost before its
            first one.
        command: the command line, for the record.
        checkpoint_minutes: between checkpoints, at most (and one iteration).
        observer: told about progress.

    Raises:
        UserError: the folder is taken, there is nothing to resume, another version wrote it, or the disk is full.
        TrainingDiverged: the loss became NaN; the checkpoints before it are good.
    """
    config = build_config(values)
    number("checkpoint_minutes", checkpoint_minutes, least=0)
    check_folder(folder, resume=resume)
    newest = latest_checkpoint(folder)
    if newest is not None:
        check_resumable(newest)
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / CONFIG, values)
    start, critic = folder / "start", folder / "critic"
    if isinstance(config, OnlineConfig) and config.start_from is not None:
        values = replace_key(values, "online", "start_from", str(start))
        keep_bundle(config.start_from, start)
        write_yaml(folder / CONFIG, values)
        config = build_config(values)
    if config.objective_critic is not None and critic.exists():
        values = replace_key(values, "training", "critic_from", str(critic))
        config = build_config(values)
    start_ray(config)
    algorithm = _build(config, newest)
    run = _Run(folder, algorithm, command=command, checkpoint_minutes=checkpoint_minutes)
    try:
        if config.objective_critic is not None and not critic.exists():
            keep_bundle(config.objective_critic, critic)
            values = replace_key(values, "training", "critic_from", str(critic))
        run.log.describe(algorithm, values)
        if observer is not None:
            observer.started(algorithm)
        return run.loop(observer)
    finally:
        run.close()


class _Run:
    """The loop: iterations, their evaluations and checkpoints, and whether to stop."""

    def __init__(
        self, folder: Path, algorithm: SequenceAlgorithm, *, command: str | None, checkpoint_minutes: float
    ) -> None:
        self.folder = folder
        self.algorithm = algorithm
        self.log = RunLog(folder, algorithm.gradient_steps, command=command)
        self.stopping = False
        self.checkpoint_seconds = 60.0 * checkpoint_minutes
        self.saved_at = time.monotonic()
        self.seconds = float(self.log.last.get("time_total_s", 0.0))

    def loop(self, observer: Observer | None) -> RunOutcome:
        """Iterate until the last gradient step or an interrupt."""

        def on_step(gradient_step: int, loss: float) -> bool:
            if observer is not None:
                observer.stepped(gradient_step, loss)
            return not self.stopping

        self.algorithm.observe_steps(on_step)
        self.algorithm.stop_when(lambda: self.stopping)
        with on_interrupt(self._stop):
            while not self.algorithm.done and not self.stopping:
                record = self._iterate()
                if record is None:
                    break
                if observer is not None:
                    observer.iterated(record)
        return RunOutcome(
            folder=self.folder,
            gradient_steps=self.algorithm.gradient_steps,
            finished=self.algorithm.done,
            last=self.log.last,
        )

    def close(self) -> None:
        """Stop the algorithm and close the log."""
        self.log.close()
        self.algorithm.stop()

    def _stop(self) -> None:
        self.stopping = True

    def _iterate(self) -> dict[str, Any] | None:
        """One iteration, its record and what it leaves; None if it was stopped before its first gradient step."""
        start, steps_before = time.perf_counter(), self.algorithm.gradient_steps
        result = self.algorithm.train()
        if self.stopping and self.algorithm.gradient_steps == steps_before:
            self._save()
            return None
        evaluation = (result.get("evaluation") or {}).get(ALIGNMENT)
        if evaluation is None and self.algorithm.at_milestone and self.algorithm.config.env is not None:
            evaluation = self.algorithm.evaluate()[ALIGNMENT]
        self.seconds += time.perf_counter() - start
        record = self._record(result, self.algorithm.gradient_steps - steps_before)
        if evaluation is not None:
            record["evaluation"] = evaluation
        late = time.monotonic() - self.saved_at >= self.checkpoint_seconds
        # The checkpoint comes first: a record without one would be dropped by a resume anyway.
        checkpoint = None
        if evaluation is not None or late or self.algorithm.done or self.stopping:
            checkpoint = self._save()
        with writing(self.folder):
            self.log.add(record, checkpoint=checkpoint)
            prune_checkpoints(self.folder, besides=self.log.best_checkpoint())
        return record

    def _record(self, result: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """Return an iteration's line in `metrics.jsonl`, without its evaluation."""
        learner = result["learners"]["default_policy"]
        return {
            "iteration": result["training_iteration"],
            GRADIENT_STEPS: self.algorithm.gradient_steps,
            LOSS: float(learner[LOSS]),
            GRAD_NORM: float(learner[GRAD_NORM]),
            LEARNING_RATE: float(learner[LEARNING_RATE]),
            "steps_per_s": steps / max(self.algorithm.last_update_seconds, 1e-9),
            "time_total_s": self.seconds,
            "done": self.algorithm.done,
            **{key: float(learner[key]) for key in (*online_metrics(), CONSERVATIVE_GAP) if key in learner},
            **self.algorithm.report(),
        }

    def _save(self) -> Path:
        """Write a checkpoint."""
        checkpoint = write_checkpoint(self.folder, self.algorithm, command=self.log.command)
        self.saved_at = time.monotonic()
        return checkpoint


def _build(config: SequenceConfig, checkpoint: Path | None) -> SequenceAlgorithm:
    """Build the algorithm, restored from a checkpoint if there is one."""
    algorithm: SequenceAlgorithm = config.build_algo()
    if checkpoint is not None:
        try:
            algorithm.restore_from_path(str(checkpoint.resolve()))
        except Exception:
            algorithm.stop()
            raise
    return algorithm
