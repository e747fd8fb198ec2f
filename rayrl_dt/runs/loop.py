"""A single training run: its folder, its loop, and how it resumes.

A run folder holds `config.yaml` (what was chosen, with the environment), `run.json` (command, versions, data),
`metrics.jsonl` (a line per iteration), `checkpoints/N/` (RLlib checkpoint of gradient step N with its policy bundle),
`policy/` (the newest bundle), `evaluations/` (`last.json`, `best.json`) and TensorBoard events.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.baselines.cql import CONSERVATIVE_GAP
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.evaluation import ALIGNMENT
from rayrl_dt.algorithms.learner import GRAD_NORM, GRADIENT_STEPS, LEARNING_RATE, LOSS
from rayrl_dt.algorithms.online.config import OnlineConfig
from rayrl_dt.algorithms.online.learner import ONLINE_METRICS
from rayrl_dt.algorithms.session import start_ray
from rayrl_dt.data.staging import publish, stage
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import find_bundle
from rayrl_dt.interop.run_files import CONFIG, RECORD, is_run
from rayrl_dt.runs.checkpoints import latest_checkpoint, prune_checkpoints, write_checkpoint, writing
from rayrl_dt.runs.config_files import build_config
from rayrl_dt.runs.records import badness, begun, records_up_to, write_json, write_yaml
from rayrl_dt.versions import git_commit, package_versions

__all__ = ["CHECKPOINT_MINUTES", "Observer", "RunOutcome", "train"]

CHECKPOINT_MINUTES = 10.0
"""What a lost process may cost, where no evaluation writes a checkpoint more often."""

# Beside the loss, where they apply.
_LEARNER_METRICS = (*ONLINE_METRICS, CONSERVATIVE_GAP)


class Observer(Protocol):
    """What a caller may watch of a run."""

    def started(self, algorithm: SequenceAlgorithm) -> None:
        """Return the algorithm is built."""

    def stepped(self, gradient_step: int, loss: float) -> None:
        """Return a gradient step was taken (local learner only)."""

    def iterated(self, record: Mapping[str, Any]) -> None:
        """Return an iteration ended; `record` is its line in `metrics.jsonl`."""


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
        UserError: the folder is taken, or there is nothing to resume, or the disk is full.
        TrainingDiverged: the loss became NaN; the checkpoints before it are good.
    """
    config = build_config(values)
    if not checkpoint_minutes >= 0:
        raise UserError(f"checkpoint_minutes is {checkpoint_minutes}; it must be a number of at least 0")
    _check_folder(folder, resume=resume)
    newest = latest_checkpoint(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / CONFIG, values)
    if isinstance(config, OnlineConfig) and config.start_from is not None:
        # The run must not hang on a policy that may move or go on training.
        values = {**values, "online": {**values["online"], "start_from": str(folder / "start")}}
        _keep(config.start_from, folder / "start")
        write_yaml(folder / CONFIG, values)
        config = build_config(values)
    if config.objective_critic is not None and (folder / "critic").exists():
        values = _asking(values, folder / "critic")
        config = build_config(values)
    start_ray(config)
    algorithm = _build(config, newest)
    run = _Run(folder, algorithm, command=command, checkpoint_minutes=checkpoint_minutes)
    try:
        if config.objective_critic is not None and not (folder / "critic").exists():
            # The original may move, or be trained again.
            _keep(config.objective_critic, folder / "critic")
            values = _asking(values, folder / "critic")
        run.describe(values)
        if observer is not None:
            observer.started(algorithm)
        return run.loop(observer)
    finally:
        run.close()


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UserError if a run cannot begin in a folder, or go on there."""
    taken = folder.exists() and any(folder.iterdir())
    if taken and not is_run(folder):
        raise UserError(f"{folder} exists already and is no run (it has no {CONFIG}); choose another --out")
    if resume and not taken:
        raise UserError(f"{folder} has nothing to resume; start it without --resume")
    if taken and not resume:
        raise UserError(f"{folder} exists already; continue it with --resume or choose another --out")


def _keep(source: str, folder: Path) -> None:
    """Copy the bundle of a run, checkpoint or bundle to a folder, unless it is there."""
    if folder.exists():
        return
    aside = stage(folder)
    shutil.copytree(find_bundle(source), aside, dirs_exist_ok=True)
    publish(aside, folder)


def _asking(values: Mapping[str, Any], critic: Path) -> dict[str, Any]:
    """Return a config file's content whose objective asks another critic."""
    return {**values, "training": {**values["training"], "critic_from": str(critic)}}


class _Run:
    """The loop's state: writers, the best evaluation so far, whether to stop."""

    def __init__(
        self, folder: Path, algorithm: SequenceAlgorithm, *, command: str | None, checkpoint_minutes: float
    ) -> None:
        from tensorboardX import SummaryWriter

        self.folder = folder
        self.algorithm = algorithm
        self.stopping = False
        self.checkpoint_seconds = 60.0 * checkpoint_minutes
        self.saved_at = time.monotonic()
        self.begun = begun(folder / RECORD, command, algorithm.gradient_steps)
        self.records = records_up_to(folder / "metrics.jsonl", algorithm.gradient_steps)
        self.seconds = float(self.records[-1]["time_total_s"]) if self.records else 0.0
        self.tensorboard = SummaryWriter(str(folder))
        best = folder / "evaluations" / "best.json"
        self.best = badness(json.loads(best.read_text())) if best.exists() else math.inf

    def describe(self, values: Mapping[str, Any]) -> None:
        """Write `config.yaml` and `run.json`; of a resumed run, how it was begun stays on record."""
        algorithm, config = self.algorithm, self.algorithm.config
        spec = algorithm.policy_spec
        resolved = {
            **values,
            "environment": {"env": config.env, "env_config": dict(config.env_config)},
            "debugging": {**values.get("debugging", {}), "seed": config.seed},
        }
        write_yaml(self.folder / CONFIG, resolved)
        store = algorithm.offline_data.store
        returns = store.episode_returns
        write_json(
            self.folder / RECORD,
            {
                **self.begun,
                "versions": package_versions(),
                "git_commit": git_commit(),
                "seed": config.seed,
                "dataset": config.dataset,
                "env": config.env,
                "name": values.get("name"),
                "algorithm": values.get("algorithm"),
                "backbone": spec.model.backbone,
                "parameters": algorithm.num_parameters(),
                "data": {
                    "episodes": store.num_episodes,
                    "steps": store.num_steps,
                    "return_min": float(returns.min()),
                    "return_max": float(returns.max()),
                    "return_mean": float(returns.mean()),
                    "returns": [round(float(value), 3) for value in returns[:100_000]],
                },
            },
        )

    def loop(self, observer: Observer | None) -> RunOutcome:
        """Iterate until the last gradient step or an interrupt."""

        def on_step(gradient_step: int, loss: float) -> bool:
            if observer is not None:
                observer.stepped(gradient_step, loss)
            return not self.stopping

        self.algorithm.observe_steps(on_step)
        self.algorithm.stop_when(lambda: self.stopping)
        record: dict[str, Any] = self.records[-1] if self.records else {}
        with _interrupts(self._stop):
            while not self.algorithm.done and not self.stopping:
                found = self._iterate()
                if found is None:
                    break
                record = found
                if observer is not None:
                    observer.iterated(record)
        return RunOutcome(
            folder=self.folder,
            gradient_steps=self.algorithm.gradient_steps,
            finished=self.algorithm.done,
            last=record,
        )

    def _stop(self) -> None:
        self.stopping = True

    def _iterate(self) -> dict[str, Any] | None:
        """One iteration, its record and what it leaves; None if it was stopped before its first gradient step."""
        begin, steps_before = time.perf_counter(), self.algorithm.gradient_steps
        result = self.algorithm.train()
        if self.stopping and self.algorithm.gradient_steps == steps_before:
            self._save()
            return None
        evaluation = (result.get("evaluation") or {}).get(ALIGNMENT)
        if evaluation is None and self.algorithm.at_milestone and self.algorithm.config.env is not None:
            evaluation = self.algorithm.evaluate()[ALIGNMENT]
        self.seconds += time.perf_counter() - begin
        learner = result["learners"]["default_policy"]
        update_seconds = self.algorithm.last_update_seconds
        record: dict[str, Any] = {
            "iteration": result["training_iteration"],
            GRADIENT_STEPS: self.algorithm.gradient_steps,
            LOSS: float(learner[LOSS]),
            GRAD_NORM: float(learner[GRAD_NORM]),
            LEARNING_RATE: float(learner[LEARNING_RATE]),
            "steps_per_s": (self.algorithm.gradient_steps - steps_before) / max(update_seconds, 1e-9),
            "time_total_s": self.seconds,
            "done": self.algorithm.done,
            **{name: float(learner[name]) for name in _LEARNER_METRICS if name in learner},
            **self.algorithm.report(),
        }
        if evaluation is not None:
            record["evaluation"] = evaluation
        late = time.monotonic() - self.saved_at >= self.checkpoint_seconds
        # The checkpoint comes first: a record without one would be dropped by a resume anyway.
        checkpoint = None
        if evaluation is not None or late or self.algorithm.done or self.stopping:
            checkpoint = self._save()
        with writing(self.folder):
            with (self.folder / "metrics.jsonl").open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            if evaluation is not None and checkpoint is not None:
                self._judge(evaluation, checkpoint)
            prune_checkpoints(self.folder, besides=self._best_checkpoint())
            self._to_tensorboard(record)
        return record

    def _save(self) -> Path:
        """Write a checkpoint."""
        checkpoint = write_checkpoint(self.folder, self.algorithm, command=self.begun["command"])
        self.saved_at = time.monotonic()
        return checkpoint

    def _judge(self, evaluation: dict[str, Any], checkpoint: Path) -> None:
        """Write the last evaluation, and the best one, by `badness`."""
        folder = self.folder / "evaluations"
        folder.mkdir(exist_ok=True)
        named = {**evaluation, "checkpoint": str(checkpoint.relative_to(self.folder))}
        write_json(folder / "last.json", named)
        if badness(evaluation) < self.best:
            self.best = badness(evaluation)
            write_json(folder / "best.json", named)

    def _best_checkpoint(self) -> list[str]:
        best = self.folder / "evaluations" / "best.json"
        return [json.loads(best.read_text())["checkpoint"]] if best.exists() else []

    def _to_tensorboard(self, record: Mapping[str, Any]) -> None:
        step = record[GRADIENT_STEPS]
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.tensorboard.add_scalar(f"train/{key}", value, step)
        for key, value in record.get("evaluation", {}).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.tensorboard.add_scalar(f"evaluation/{key}", value, step)
        for target in record.get("evaluation", {}).get("targets", []):
            name = f"evaluation/return_at_target_{target['target']:.0f}"
            self.tensorboard.add_scalar(name, target["return_mean"], step)

    def close(self) -> None:
        self.tensorboard.close()
        self.algorithm.stop()


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


@contextmanager
def _interrupts(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first Ctrl-C (or SIGTERM); the next one interrupts as usual."""
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        stop()
        signal.signal(number, before[number])

    try:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[int(wanted)] = signal.signal(wanted, handle)
    except ValueError:  # not in the main thread: the caller handles signals
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
