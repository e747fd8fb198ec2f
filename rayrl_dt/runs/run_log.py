"""The log of a run: its settings and data, a record per iteration, its evaluations, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.learner import GRADIENT_STEPS
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.interop.run_files import BEST, CONFIG, EXPECTED, LAST, METRICS, RECORD
from rayrl_dt.runs.records import checkpoint_score, provenance, records_up_to, write_json, write_yaml
from rayrl_dt.versions import git_commit, package_versions

__all__ = ["RunLog"]

# Of the data's returns, so that a run's record stays a small file.
_MOST_RETURNS = 100_000


class RunLog:
    """What a run writes about itself.

    Args:
        folder: the run folder; records after `gradient_steps` are cut from it.
        gradient_steps: that the run has behind it.
        command: the command line, for the record.

    Attributes:
        command: the command that started the run.
        last: the last iteration's record; empty before the first.
    """

    def __init__(self, folder: Path, gradient_steps: int, *, command: str | None) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._folder = folder
        self._provenance = provenance(folder, command, gradient_steps)
        self.command: str | None = self._provenance["command"]
        records = records_up_to(folder, gradient_steps)
        self.last: dict[str, Any] = records[-1] if records else {}
        # Not a `SummaryWriter`: its thread and its last attempt when the process ends fail loudly on a full disk.
        self._tensorboard = EventsWriter(str(folder / "events"))
        best = folder / BEST
        self._best: Mapping[str, Any] | None = json.loads(best.read_text()) if best.exists() else None

    def describe(self, algorithm: SequenceAlgorithm, values: Mapping[str, Any]) -> None:
        """Write `config.yaml` and `run.json`; of a resumed run, how it was started stays on record."""
        config, environment = algorithm.config, algorithm.policy_spec.env
        resolved = {
            **values,
            "debugging": {**values.get("debugging", {}), "seed": config.seed},
        }
        write_yaml(self._folder / CONFIG, resolved)
        write_json(
            self._folder / RECORD,
            {
                **self._provenance,
                "versions": package_versions(),
                "git_commit": git_commit(),
                "seed": config.seed,
                "dataset": config.dataset,
                "env": None if environment is None else environment.id,
                "name": values.get("name"),
                "algorithm": values.get("algorithm"),
                "backbone": algorithm.policy_spec.model.backbone,
                "parameters": algorithm.num_parameters(),
                EXPECTED: algorithm.expected_gradient_steps,
                "data": _summary(algorithm.offline_data.store),
            },
        )

    def add(self, record: dict[str, Any], *, checkpoint: Path | None) -> None:
        """Write an iteration's record, and its evaluation if it has one with a checkpoint."""
        with (self._folder / METRICS).open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        evaluation = record.get("evaluation")
        if evaluation is not None and checkpoint is not None:
            self._keep_evaluation(evaluation, checkpoint)
        self._to_tensorboard(record)
        self.last = record

    def best_checkpoint(self) -> list[str]:
        """Return the path of the best checkpoint in the folder, if one was evaluated."""
        best = self._folder / BEST
        return [json.loads(best.read_text())["checkpoint"]] if best.exists() else []

    def close(self) -> None:
        """Close the TensorBoard file; what the disk has no room for is lost to it, and to nothing else."""
        with suppress(OSError):
            self._tensorboard.close()

    def _keep_evaluation(self, evaluation: dict[str, Any], checkpoint: Path) -> None:
        """Write the last evaluation, and the best one by `checkpoint_score` of those with its targets."""
        (self._folder / LAST).parent.mkdir(exist_ok=True)
        named = {**evaluation, "checkpoint": str(checkpoint.relative_to(self._folder))}
        write_json(self._folder / LAST, named)
        best = self._best
        # Other targets, which a resumed run may have, make other scores.
        comparable = best is not None and _targets(best) == _targets(evaluation)
        if best is None or not comparable or checkpoint_score(evaluation) > checkpoint_score(best):
            self._best = named
            write_json(self._folder / BEST, named)

    def _to_tensorboard(self, record: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        step, evaluation = record[GRADIENT_STEPS], record.get("evaluation", {})
        scalars = {
            f"{section}/{key}": value
            for section, values in (("train", record), ("evaluation", evaluation))
            for key, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        targets = evaluation.get("targets", [])
        # Whole numbers where they tell the targets apart: returns may lie between 0 and 1.
        figures = ".0f" if len({f"{item['target']:.0f}" for item in targets}) == len(targets) else ".6g"
        for item in targets:
            scalars[f"evaluation/return_at_target_{item['target']:{figures}}"] = item["return_mean"]
        for name, value in scalars.items():
            self._tensorboard.write_event(
                Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            )
        self._tensorboard.flush()


def _targets(evaluation: Mapping[str, Any]) -> list[float]:
    return [item["target"] for item in evaluation["targets"]]


def _summary(store: TrajectoryStore) -> dict[str, Any]:
    """Return what a report says of the data."""
    returns = store.episode_returns
    return {
        "episodes": store.num_episodes,
        "steps": store.num_steps,
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "return_mean": float(returns.mean()),
        "returns": [round(float(value), 3) for value in returns[:_MOST_RETURNS]],
    }
