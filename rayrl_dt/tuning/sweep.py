"""Runs a sweep with Ray Tune, or resumes one that was cut short."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from ray import tune

from rayrl_dt.algorithms.session import start_ray
from rayrl_dt.doctor.cluster import check_storage
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.interop.owners import check_owner
from rayrl_dt.runs.config_files import build_config
from rayrl_dt.runs.inputs import locked
from rayrl_dt.runs.interrupts import on_interrupt
from rayrl_dt.tuning.conclusion import SWEEP, SweepOutcome, conclude
from rayrl_dt.tuning.remote_sweep import RemoteSweep
from rayrl_dt.tuning.results import SETTINGS
from rayrl_dt.tuning.search import scheduler, searcher
from rayrl_dt.tuning.sweep_checks import can_resume, check_data, check_resources, require_shared
from rayrl_dt.tuning.sweep_spec import SweepSpec
from rayrl_dt.tuning.trial import KNOWN, SweepTrial

__all__ = ["run_sweep"]

# The best one, and always the newest; PBT's trials read each other's for a while.
_KEPT_CHECKPOINTS = {"pbt": 4}
_KEPT_BY_DEFAULT = 2


def run_sweep(
    spec: SweepSpec,
    out: Path,
    *,
    resume: bool = False,
    trust_checkpoint: bool = False,
    address: str | None = None,
    remote: RemoteSweep | None = None,
) -> SweepOutcome:
    """Run all trials, or those that are not finished; a trial that dies goes on from its newest checkpoint.

    Args:
        spec: from `read_sweep`.
        out: folder of the sweep; new, unless `resume`.
        resume: go on with the sweep in the folder; finished trials are not run again.
        trust_checkpoint: resume from another user's files; checkpoints are pickles, which run code of their writer.
        address: of a running Ray cluster; `out` must be storage that its nodes share, if there is no `remote`.
        remote: where Ray Tune is to keep it instead; `out` gets what is read of it, and has it, fetched, on `resume`.

    Raises:
        UserError: the folder is taken, another user's, or holds another sweep, there is nothing to resume, data or an
            environment is missing, nodes do not share the folder, or the cluster cannot hold a trial.
    """
    out = out.resolve()
    # Tune saves its state every 10 s; what ended since then would be run again after a kill.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    # A relative path in the file means the same to a trial.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if resume and not trust_checkpoint:
        check_owner(out)
    restored = can_resume(spec, out, resume=resume)
    check_data(spec)
    trainable = _trainable(spec)
    start_ray(address=address)
    if remote is None:
        require_shared(out, check_storage(out))
    check_resources(spec, trainable)
    callbacks = [_KeepsSettings(), *_loggers(spec)]
    if remote is not None and not resume:
        remote.begin(spec.to_yaml())
    out.mkdir(parents=True, exist_ok=True)
    place, system = (str(out), None) if remote is None else (remote.path, remote.system)
    with locked(out, what="sweep"):
        if restored:
            tuner = tune.Tuner.restore(
                place, trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=system
            )
        else:
            (out / SWEEP).write_text(spec.to_yaml())
            tuner = _tuner(spec, trainable, place, system, callbacks)
        begin = time.time()
        with _ended_alike():
            tuner.fit()
        end = time.time()
        if remote is not None:
            remote.fetch()
        outcome = conclude(spec, out, wall=(begin, end))
        if remote is not None:
            remote.push()
        return outcome


@contextmanager
def _ended_alike() -> Iterator[None]:
    """Have SIGTERM and SIGHUP do what Ctrl-C does: Ray Tune saves its state, and the table is written."""

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with on_interrupt(interrupt, also=()):
        yield


def _tuner(spec: SweepSpec, trainable: Any, place: str, system: Any, callbacks: list[Any]) -> Any:
    settings = spec.settings
    # What is only evaluated leaves no checkpoint.
    frequency = 1 if spec.run is None else 0
    return tune.Tuner(
        trainable,
        param_space=spec.param_space | _known(spec),
        tune_config=tune.TuneConfig(
            metric=settings.metric,
            mode=settings.best,
            num_samples=settings.num_samples,
            search_alg=searcher(spec),
            scheduler=scheduler(spec),
            max_concurrent_trials=settings.max_concurrent,
            # A trial that begins in the process of one that ended saves the imports, most of a short trial's time.
            reuse_actors=True,
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=PurePath(place).name,
            storage_path=str(PurePath(place).parent),
            storage_filesystem=system,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=_KEPT_CHECKPOINTS.get(settings.scheduler, _KEPT_BY_DEFAULT),
                checkpoint_score_attribute=settings.metric,
                checkpoint_score_order=settings.best,
                checkpoint_frequency=frequency,
                checkpoint_at_end=bool(frequency),
            ),
            callbacks=callbacks,
            verbose=1,
        ),
    )


class _KeepsSettings(tune.Callback):  # type: ignore[misc]  # Ray Tune is untyped, so a base of its is Any
    """Writes the settings of a trial that failed before Ray has: they are told with the others'."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write `params.json` where it is missing, beside the error."""
        file = Path(trial.local_path) / SETTINGS
        if not file.exists():
            file.write_text(json.dumps(trial.config, default=str))


def _known(spec: SweepSpec) -> dict[str, Any]:
    """Return what this process knows of the environments that trials name; it may have registered them itself."""
    if spec.run is not None:
        return {}
    configs = map(build_config, spec.corners)
    return {KNOWN: {config.env: config.known_env for config in configs if config.known_env is not None}}


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _loggers(spec: SweepSpec) -> list[Any]:
    """Ray's own callbacks, made sure that they can start; TensorBoard, CSV and JSON it adds itself."""
    callbacks: list[Any] = []
    for logger in spec.settings.loggers:
        if logger == "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            callback = WandbLoggerCallback(project=spec.name)
        else:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            callback = MLflowLoggerCallback(experiment_name=spec.name)
        try:
            callback.setup()
        except Exception as error:  # of another package, about keys, servers and folders
            reason = one_line(error)
            raise UserError(
                f"tune.loggers: {logger} cannot start ({reason}); log in, or leave it out"
            ) from error
        callbacks.append(callback)
    return callbacks


def _trainable(spec: SweepSpec) -> Any:
    if spec.run is None:
        return SweepTrial
    from rayrl_dt.tuning.refinement_trial import RefinementTrial

    return RefinementTrial
