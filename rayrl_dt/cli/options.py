"""Arguments and options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rayrl_dt.errors import UserError

__all__ = [
    "CheckpointMinutes",
    "ContextLength",
    "Dataset",
    "Guidance",
    "JsonFile",
    "OtherDataset",
    "OtherEnv",
    "Overrides",
    "Policy",
    "Resume",
    "TrustCheckpoint",
    "TrustEnvironment",
    "chosen_data",
    "place",
]

_SCHEME = re.compile(r"^(\w[\w+.-]+):/+")  # a path has one slash left of a URI's two; C:/ is a drive


def _on_this_machine(option: typer.CallbackParam, path: Path | None) -> Path | None:
    if path is not None and _SCHEME.match(str(path)):
        uri = _SCHEME.sub(r"\1://", str(path))
        raise UserError(
            f"{option.opts[0]} is {uri}, a URI: name a path on this machine; only train, finetune and tune write to one"
        )
    return path


def place(*names: str, help: str, **options: Any) -> Any:
    """Return an option that takes a path on this machine, to write to; a URI is refused."""
    return typer.Option(*names, callback=_on_this_machine, help=help, **options)


Policy = Annotated[Path, typer.Argument(help="Run folder, checkpoint or policy bundle.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one key, as in section.key=value; may be given several times."),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Data source instead of the config's (offline_data.dataset): recipe:NAME, minari:ID, d4rl:FILE, "
        "store:FOLDER."
    ),
]
OtherDataset = Annotated[
    str | None, typer.Option(help="Use this data source instead of the one that the policy was trained on.")
]
OtherEnv = Annotated[
    str | None,
    typer.Option(
        help="Use this environment instead of the policy's own: Id-v0, package:Id-v0 or module:Class."
    ),
]
TrustEnvironment = Annotated[
    bool,
    typer.Option(
        "--trust-environment",
        help="Run the code that data or policy name as their environment, whatever its package. It may do anything.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue from the newest checkpoint of the run folder, a pickle: it runs code of whoever wrote it.",
    ),
]
TrustCheckpoint = Annotated[
    bool,
    typer.Option("--trust-checkpoint", help="Resume a folder that holds another user's files."),
]
CheckpointMinutes = Annotated[
    float,
    typer.Option(help="Write a checkpoint at least this often, in minutes; every evaluation writes one too."),
]
JsonFile = Annotated[
    Path | None, place("--json", dir_okay=False, help="Write the figures to this JSON file too.")
]
ContextLength = Annotated[
    int | None, typer.Option(help="Steps that the policy sees, at most its K; as in training by default.")
]
Guidance = Annotated[
    float | None, typer.Option(help="How strongly the return is followed; as in training by default.")
]


def chosen_data(dataset: str | None) -> list[str]:
    """Return the `--set` that a `--dataset` stands for."""
    return [] if dataset is None else [f"offline_data.dataset={dataset}"]
