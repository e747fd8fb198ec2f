"""`rayrl-dt train`, `finetune` and `quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rayrl_dt.cli.console import command_line, console, finish, leave_unfinished, quoted
from rayrl_dt.cli.options import (
    CheckpointMinutes,
    Dataset,
    Overrides,
    Resume,
    TrustCheckpoint,
    TrustEnvironment,
    chosen_data,
    place,
)
from rayrl_dt.cli.progress import TrainingProgress
from rayrl_dt.errors import UserError

if TYPE_CHECKING:
    from rayrl_dt.runs.remote_copy import RemoteCopy

__all__ = ["register"]

_SHOWN = 4  # settings in one line
_COPIED = {"online.start_from", "training.critic_from"}  # into each run
_OF_THE_RUN = {"debugging.seed", *_COPIED}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(quickstart)
    app.command()(train)
    app.command()(finetune)


def quickstart(
    out: Annotated[Path, place(help="Folder to write data, runs and report to.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and episodes.")] = 0,
) -> None:
    """Make data, train DT and RADT on it, measure how well each obeys, finetune a third online (~3 minutes).

    The third policy is pretrained on poor data alone and goes online with a critic; one page shows all of them.
    Ctrl-C saves a checkpoint, and ends with status 1; the same command goes on from there.

    Example: rayrl-dt quickstart
    """
    from rayrl_dt.runs import quickstart as story

    page = story.run(out, seed=seed, progress=TrainingProgress, say=console.print, command=command_line())
    if page is None:
        again = f"rayrl-dt quickstart --out {quoted(out)} --seed {seed}"
        leave_unfinished("stopped; checkpoints saved in", out, then=again)
    finish("report:", page, then=f"rayrl-dt eval {quoted(out / 'radt')} --targets=-1500,-800,-200")


def train(
    config: Annotated[
        Path,
        typer.Argument(
            help="YAML file that says what to train, as in tune_configs/; with --resume, a run folder will do."
        ),
    ],
    dataset: Dataset = None,
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder to write; runs/CONFIG-seedN by default. A URI, as in s3://bucket/NAME, has runs/NAME "
            "copied there with each checkpoint."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, batches and episodes; the config's own by default.")
    ] = None,
    trust_environment: TrustEnvironment = False,
    resume: Resume = False,
    trust_checkpoint: TrustCheckpoint = False,
    checkpoint_minutes: CheckpointMinutes = 10.0,
) -> None:
    """Train on logged data. Ctrl-C saves a checkpoint, and ends with status 1.

    A resumed run keeps the settings that it started with (--dataset, --set, --seed, too); --set changes all but the
    seed, and what its weights hang on.

    Examples:
      rayrl-dt train tune_configs/dt_pendulum.yaml --seed 1
      rayrl-dt train tune_configs/dt.yaml --dataset minari:mujoco/hopper/medium-v0 --out runs/hopper
      rayrl-dt train tune_configs/dt_pendulum.yaml --set training.lr=1e-4 --out runs/slow
      rayrl-dt train runs/slow --resume
      rayrl-dt train tune_configs/dt_pendulum.yaml --out s3://bucket/runs/pendulum
    """
    from rayrl_dt.runs.config_files import apply_overrides, read_yaml

    file, run = _file_of(config, resume=resume)
    changes = [*chosen_data(dataset), *(overrides or []), *_trust(trust_environment)]
    values = of_file = apply_overrides(read_yaml(file), changes)
    if seed is not None:
        values = apply_overrides(values, [f"debugging.seed={seed}"])
    folder, copy = _place(out, run or Path("runs") / f"{file.stem}-seed{_seed_of(values)}", resume=resume)
    if resume:
        values = _settings_of_run(folder, values, changes, seed)
        _tell_of_other_settings(folder, values, of_file, file)
    _run(
        values,
        folder,
        resume=resume,
        trust_checkpoint=trust_checkpoint,
        checkpoint_minutes=checkpoint_minutes,
        resume_command=f"rayrl-dt train {quoted(config)} --out {quoted(out or folder)} --resume",
        copy=copy,
    )


def _file_of(config: Path, *, resume: bool) -> tuple[Path, Path | None]:
    """Return the file of settings that a command names, and the run folder if it names one of those."""
    from rayrl_dt.interop.run_files import CONFIG, is_run

    if not is_run(config):
        return config, None
    if not resume:
        raise UserError(
            f"{config} is a run folder: continue it with --resume, or train another run with its settings: "
            f"rayrl-dt train {quoted(config / CONFIG)} --out OTHER"
        )
    return config / CONFIG, config


def _place(out: str | None, default: Path, *, resume: bool) -> tuple[Path, RemoteCopy | None]:
    """Return the folder that a run works in, and its copy elsewhere if there is to be one."""
    from rayrl_dt.runs.remote_copy import RemoteCopy, working_folder

    folder, uri = working_folder(out, default)
    if uri is None:
        return folder, None
    copy = RemoteCopy(uri, folder)
    copy.check(resume=resume)
    return folder, copy


def _trust(environment: bool) -> list[str]:
    """Return the setting that an option stands for."""
    return ["environment.trust_environment=true"] if environment else []


def _settings_of_run(
    folder: Path, otherwise: dict[str, Any], overrides: list[str], seed: int | None
) -> dict[str, Any]:
    """Return the settings of the run that a folder holds, with the overrides of the command that resumes it."""
    from rayrl_dt.interop.run_files import CONFIG, is_run
    from rayrl_dt.runs.checkpoints import latest_checkpoint
    from rayrl_dt.runs.config_files import apply_overrides, read_yaml

    if not is_run(folder):
        _check_other_seeds(folder)
        return otherwise  # there is nothing to resume, as training will say
    for key in (override.partition("=")[0].strip() for override in overrides):
        if key in _COPIED:
            raise UserError(
                f"--set {key} is for a new run: {folder} keeps a copy of what it began with; leave it out, or start "
                "another run without --resume"
            )
    kept = read_yaml(folder / CONFIG)
    values, first = apply_overrides(kept, overrides), _seed_of(kept)
    for option, asked in (
        ("--seed", first if seed is None else seed),
        ("--set debugging.seed", _seed_of(values)),
    ):
        if asked != first:
            raise UserError(
                f"{option} is {asked}, and the run in {folder} started with {first}; leave it out, or start another "
                "run without --resume"
            )
    if latest_checkpoint(folder) is None:
        console.print(
            f"{escape(str(folder))} was lost before its first checkpoint: it starts over with its first settings "
            "(without --resume: with those of the command)"
        )
    return values


def _seed_of(values: dict[str, Any]) -> Any:
    return (values.get("debugging") or {}).get("seed", 0)


def _check_other_seeds(folder: Path) -> None:
    """Raise UserError if runs of other seeds lie beside a folder that holds none."""
    from rayrl_dt.interop.run_files import is_run

    name, _, seed = folder.name.rpartition("-seed")
    if not seed.isdigit():
        return
    beside = [(path, *path.name.rpartition("-seed")[::2]) for path in sorted(folder.parent.glob("*-seed*"))]
    begun = [str(path) for path, of, other in beside if of == name and other.isdigit() and is_run(path)]
    if begun:
        raise UserError(
            f"{folder} has nothing to resume, {', '.join(begun)} has; add its --seed, or name the folder"
        )


def _tell_of_other_settings(
    folder: Path, values: dict[str, Any], of_file: dict[str, Any], file: Path
) -> None:
    """Say where a resumed run has other settings than the file that was named, which may have been edited since."""
    from rayrl_dt.runs.config_files import differences

    found = [
        f"{name} is {_shown(value)} (there {_shown(other)})"
        for name, (value, other) in differences(values, of_file).items()
        if name not in _OF_THE_RUN
    ]
    if found:
        more = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        told = f"{folder} keeps the settings that it started with, also where {file} has others: "
        console.print(
            escape(told + ", ".join(found[:_SHOWN] + more) + "; change them with --set"), soft_wrap=True
        )


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _run(
    values: dict[str, Any],
    folder: Path,
    *,
    resume: bool,
    trust_checkpoint: bool,
    checkpoint_minutes: float,
    resume_command: str,
    copy: RemoteCopy | None,
) -> None:
    """Train with a live display, and say how it ended and what to type next."""
    from rayrl_dt.runs import loop as runs

    progress = TrainingProgress()
    with progress:
        outcome = runs.train(
            values,
            folder,
            resume=resume,
            command=command_line(),
            checkpoint_minutes=checkpoint_minutes,
            trust_checkpoint=trust_checkpoint,
            copy=copy,
            observer=progress,
        )
    if not outcome.finished:
        leave_unfinished(
            f"stopped at gradient step {outcome.gradient_steps:,}; checkpoint saved in",
            folder,
            then=resume_command,
        )
    done = "it was finished before: " if outcome.idle else ""
    finish(
        f"{done}{outcome.gradient_steps:,} gradient steps; run:",
        folder,
        then=f"rayrl-dt report {quoted(folder)}",
    )


def finetune(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint or policy bundle to start from.")],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with algorithm: OnlineDT; defaults of CPU size without one."),
    ] = None,
    overrides: Overrides = None,
    env_steps: Annotated[
        int | None, typer.Option(help="Environment steps to collect; the config's own number by default.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder to write; RUN-online by default. A URI, as in s3://bucket/NAME, has runs/NAME copied "
            "there with each checkpoint."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, batches and episodes; 0 by default.")
    ] = None,
    trust_environment: TrustEnvironment = False,
    resume: Resume = False,
    trust_checkpoint: TrustCheckpoint = False,
    checkpoint_minutes: CheckpointMinutes = 10.0,
) -> None:
    """Finetune a trained policy in its environment. Ctrl-C saves a checkpoint with its replay, and ends with status 1.

    Data (with their filters) and environment are those of the run, unless the config file names others; its model is
    always the policy's. A resumed run keeps the settings that it started with; --set changes all but the seed,
    and what its weights hang on.

    Examples:
      rayrl-dt finetune runs/dt_pendulum-seed1 --env-steps 4800
      rayrl-dt finetune runs/hopper-radt --set online.alpha=1.0 --set env_runners.num_env_runners=4
      rayrl-dt finetune runs/hopper-dt --resume
    """
    from rayrl_dt.interop.run_files import START_COPY, find_run
    from rayrl_dt.runs.config_files import apply_overrides

    source = find_run(run) or run
    if source.name in ("", ".."):
        source = source.resolve()
    folder, copy = _place(out, source.with_name(f"{source.name}-online"), resume=resume)
    changes = [*(overrides or []), *_trust(trust_environment)]
    if env_steps is not None:
        changes.append(f"online.env_steps={env_steps}")
    if resume:
        values = _settings_of_run(folder, {"algorithm": "OnlineDT"}, changes, seed)
        kept = folder / START_COPY  # what the file leaves open is as in the run itself
        if config is not None and kept.exists():
            of_file = apply_overrides(_finetune_settings(kept, config), changes)
            _tell_of_other_settings(folder, values, of_file, config)
    else:
        values = apply_overrides(_finetune_settings(run, config), [f"debugging.seed={seed or 0}", *changes])
    _run(
        values,
        folder,
        resume=resume,
        trust_checkpoint=trust_checkpoint,
        checkpoint_minutes=checkpoint_minutes,
        resume_command=f"rayrl-dt finetune {quoted(run)} --out {quoted(out or folder)} --resume",
        copy=copy,
    )


def _finetune_settings(run: Path, config: Path | None) -> dict[str, Any]:
    """Return the settings of a finetuning: a file's, and what it leaves open as in the policy's training."""
    from rayrl_dt.interop.bundle import Bundle
    from rayrl_dt.runs.config_files import read_yaml

    values: dict[str, Any] = {"algorithm": "OnlineDT"} if config is None else read_yaml(config)
    data = values.get("offline_data") or {}
    if data.get("dataset") is None:
        policy = Bundle.open(run)
        values["offline_data"] = {"dataset": policy.spec.dataset, **policy.data_settings, **data}
    values["online"] = {**(values.get("online") or {}), "start_from": str(run)}
    if (values.get("rl_module") or {}).pop("model_config", None) is not None:
        console.print(f"the model of {escape(str(config))} is left out: the policy's own stands")
    return values
