"""The iterations of a run: train, evaluate, write a checkpoint and a record, until the end or an interrupt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.cql import CONSERVATIVE_GAP
from rayrl_dt.algorithms.evaluation import ALIGNMENT
from rayrl_dt.algorithms.learner import GRAD_NORM, GRADIENT_STEPS, LEARNING_RATE, LOSS
from rayrl_dt.algorithms.online.learner import online_metrics
from rayrl_dt.algorithms.rllib_internals import uncount_iteration
from rayrl_dt.objectives.return_order import ALIGN_LOGS
from rayrl_dt.runs.checkpoints import prune_checkpoints, write_checkpoint, writing
from rayrl_dt.runs.interrupts import on_interrupt
from rayrl_dt.runs.remote_copy import RemoteCopy
from rayrl_dt.runs.run_log import RunLog

__all__ = ["Iterations", "Observer", "RunOutcome", "end"]


def end(algorithm: SequenceAlgorithm) -> None:
    """Stop an algorithm, and remove the folder that RLlib made for it in ~/ray_results if nothing was written there."""
    algorithm.stop()
    with suppress(OSError):
        Path(algorithm.logdir).rmdir()


class Observer(Protocol):
    """What a caller may watch of a run."""

    def started(self, algorithm: SequenceAlgorithm) -> None:
        """Take note that the algorithm is built."""

    def stepped(self, gradient_step: int, loss: SupportsFloat) -> None:
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
        idle: whether it was finished before.
        last: the last iteration's record.
    """

    folder: Path
    gradient_steps: int
    finished: bool
    idle: bool
    last: dict[str, Any] = field(default_factory=dict)


class Iterations:
    """The loop of a run, and whether it is to stop.

    Args:
        folder: the run folder.
        algorithm: built, and restored if the run is resumed.
        command: the command line, for the record.
        checkpoint_minutes: between checkpoints, at most.
        copy: of the folder, brought up to date with each checkpoint; None if there is none.

    Attributes:
        log: what the run writes about itself.
    """

    def __init__(
        self,
        folder: Path,
        algorithm: SequenceAlgorithm,
        *,
        command: str | None,
        checkpoint_minutes: float,
        copy: RemoteCopy | None = None,
    ) -> None:
        self.folder, self.copy = folder, copy
        self.algorithm = algorithm
        self.log = RunLog(folder, algorithm.gradient_steps, command=command)
        algorithm.command = self.log.command
        self.stopping = False
        self.checkpoint_seconds = 60.0 * checkpoint_minutes
        self.saved_at = time.monotonic()
        self.saved_steps = algorithm.gradient_steps
        self.seconds = float(self.log.last.get("time_total_s", 0.0))

    def run(self, observer: Observer | None) -> RunOutcome:
        """Iterate until the last gradient step or an interrupt."""

        def on_step(gradient_step: int, loss: SupportsFloat) -> bool:
            if observer is not None:
                observer.stepped(gradient_step, loss)
            return not self.stopping

        idle = self.algorithm.done
        self.algorithm.observe_steps(on_step)
        self.algorithm.stop_when(lambda: self.stopping)
        with on_interrupt(self._stop):
            while not self.algorithm.done and not self.stopping:
                record = self._iterate()
                if record is None:
                    break
                if observer is not None:
                    observer.iterated(record)
            if self.stopping and self.saved_steps != self.algorithm.gradient_steps:
                self._save()  # it was stopped after the iteration's own checkpoint would have been due
        return RunOutcome(
            folder=self.folder,
            gradient_steps=self.algorithm.gradient_steps,
            finished=self.algorithm.done,
            idle=idle,
            last=self.log.last,
        )

    def close(self) -> None:
        """Stop the algorithm and close the log."""
        self.log.close()
        end(self.algorithm)

    def _stop(self) -> None:
        self.stopping = True

    def _iterate(self) -> dict[str, Any] | None:
        """One iteration, its record and what it leaves; None if it was stopped before its first gradient step."""
        start, steps_before = time.perf_counter(), self.algorithm.gradient_steps
        result = self.algorithm.train()
        if self.stopping and self.algorithm.gradient_steps == steps_before:
            # Else what comes after a resume is evaluated one iteration too early.
            uncount_iteration(self.algorithm)
            self._save()
            return None
        evaluation = (result.get("evaluation") or {}).get(ALIGNMENT)
        if evaluation is None and self.algorithm.at_milestone and self.algorithm.config.why_no_env is None:
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
        if checkpoint is not None and self.copy is not None:
            self.copy.push()
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
            **{
                key: float(learner[key])
                for key in (*online_metrics(), CONSERVATIVE_GAP, *ALIGN_LOGS)
                if key in learner
            },
            **self.algorithm.report(),
        }

    def _save(self) -> Path:
        """Write a checkpoint."""
        checkpoint = write_checkpoint(self.folder, self.algorithm)
        self.saved_at, self.saved_steps = time.monotonic(), self.algorithm.gradient_steps
        return checkpoint
