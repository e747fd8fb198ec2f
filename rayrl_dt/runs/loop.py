"""A single training run: its folder, its loop, and how it resumes.

A run folder holds `config.yaml` (what was chosen, with the environment), `run.json` (command, versions, data),
`metrics.jsonl` (a line per iteration), `checkpoints/N/` (RLlib checkpoint of gradient step N with its policy bundle),
`policy/` (the newest bundle), `evaluations/` (`last.json`, `best.json`) and TensorBoard events.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.old_checkpoints import check_resumable
from rayrl_dt.algorithms.online.config import OnlineConfig
from rayrl_dt.algorithms.session import start_ray
from rayrl_dt.errors import UserError, number, one_line
from rayrl_dt.interop.bundle import BUNDLE, Bundle
from rayrl_dt.interop.header import HEADER
from rayrl_dt.interop.owners import check_owner
from rayrl_dt.interop.run_files import CONFIG, CRITIC_COPY, START_COPY
from rayrl_dt.runs.checkpoints import checkpoints, latest_checkpoint, writing
from rayrl_dt.runs.config_files import build_config
from rayrl_dt.runs.inputs import keep_bundle, own_folder, replace_key
from rayrl_dt.runs.iterations import Iterations, Observer, RunOutcome
from rayrl_dt.runs.records import write_yaml
from rayrl_dt.runs.remote_copy import RemoteCopy

__all__ = ["CHECKPOINT_MINUTES", "train"]

CHECKPOINT_MINUTES = 10.0
"""What a lost process may cost, where no evaluation writes a checkpoint more often."""


def train(
    values: Mapping[str, Any],
    folder: Path,
    *,
    resume: bool = False,
    command: str | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    trust_checkpoint: bool = False,
    copy: RemoteCopy | None = None,
    observer: Observer | None = None,
) -> RunOutcome:
    """Train one config to its last gradient step, or until Ctrl-C.

    A checkpoint is written after each iteration with an evaluation, after the first iteration that ends
    `checkpoint_minutes` after the last one, at the end and on Ctrl-C; the last two and the best are kept. A second
    Ctrl-C stops at once.

    Args:
        values: the config file's content.
        folder: the run folder; must be new or without a checkpoint, unless `resume`.
        resume: continue from the folder's newest whole checkpoint; from the start, if the run was lost before its
            first one.
        command: the command line, for the record.
        checkpoint_minutes: between checkpoints, at most (and one iteration).
        trust_checkpoint: resume from another user's files; checkpoints are pickles, which run code of their writer.
        copy: of the folder, on storage elsewhere; its `check` has been passed.
        observer: told about progress.

    Raises:
        UserError: the folder is taken, in use or another user's, there is nothing to resume, another version wrote it,
            or the disk is full.
        TrainingDiverged: the loss became NaN; the checkpoints before it are good.
    """
    config = build_config(values)
    number("checkpoint_minutes", checkpoint_minutes, least=0)
    if resume and not trust_checkpoint:
        check_owner(folder)
    with own_folder(folder, resume=resume):
        return _train(values, config, folder, command, checkpoint_minutes, copy, observer)


def _train(
    values: Mapping[str, Any],
    config: SequenceConfig,
    folder: Path,
    command: str | None,
    checkpoint_minutes: float,
    copy: RemoteCopy | None,
    observer: Observer | None,
) -> RunOutcome:
    newest = latest_checkpoint(folder)
    if newest is not None:
        check_resumable(newest)
    start, critic = folder / START_COPY, folder / CRITIC_COPY
    if newest is None:  # a resumed run keeps its settings until the new ones have been accepted
        with writing(folder / CONFIG, remedy="make room, or name a folder that can be written"):
            write_yaml(folder / CONFIG, values)
            if copy is not None:
                copy.claim()
    if isinstance(config, OnlineConfig) and config.start_from is not None:
        values = replace_key(values, "online", "start_from", str(start))
        keep_bundle(config.start_from, start)
        if newest is None:
            write_yaml(folder / CONFIG, values)
        config = build_config(values)
    if config.objective_critic is not None and critic.exists():
        values = replace_key(values, "training", "critic_from", str(critic))
        config = build_config(values)
    start_ray(config)
    algorithm = _build(config, newest)
    iterations = Iterations(
        folder, algorithm, command=command, checkpoint_minutes=checkpoint_minutes, copy=copy
    )
    try:
        if config.objective_critic is not None and not critic.exists():
            keep_bundle(config.objective_critic, critic)
            values = replace_key(values, "training", "critic_from", str(critic))
        if newest is None or not algorithm.done:  # what a finished run says of itself stays
            iterations.log.describe(algorithm, values)
        if copy is not None:
            copy.push()
        if observer is not None:
            observer.started(algorithm)
        outcome = iterations.run(observer)
    finally:
        iterations.close()
    if copy is not None:
        copy.finish()
    return outcome


def _build(config: SequenceConfig, checkpoint: Path | None) -> SequenceAlgorithm:
    """Build the algorithm, restored from a checkpoint if there is one."""
    if checkpoint is not None:
        if not (checkpoint / BUNDLE / HEADER).is_file():
            raise _damaged(checkpoint, f"{BUNDLE}/{HEADER} is missing")
        # Scales that followed from the data stay what they were, whatever the version that wrote it made of them.
        config.policy_spec = Bundle.open(checkpoint).spec.to_json()
    algorithm: SequenceAlgorithm = config.build_algo()
    if checkpoint is not None:
        try:
            algorithm.restore_from_path(str(checkpoint.resolve()))
        except (OSError, EOFError, UnpicklingError) as error:
            algorithm.stop()
            raise _damaged(checkpoint, one_line(error)) from error
        except Exception:
            algorithm.stop()
            raise
    return algorithm


def _damaged(checkpoint: Path, reason: str) -> UserError:
    """Return the error for the newest checkpoint, which is not whole any more."""
    older = checkpoints(checkpoint.parent.parent)[:-1]
    remedy = (
        f"delete it, and --resume goes on from {older[-1].name}"
        if older
        else "start another run without --resume"
    )
    return UserError(f"the checkpoint {checkpoint} is damaged ({reason}); {remedy}")
