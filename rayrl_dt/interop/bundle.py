"""The policy bundle: `policy.safetensors` + `policy.json`. No pickle, loadable without Ray."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayrl_dt.data.staging import publish, stage
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel, check_architecture
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.versions import package_versions

__all__ = ["find_bundle", "load_model", "read_header", "save_bundle"]

FORMAT = 1
_WEIGHTS = "policy.safetensors"
_HEADER = "policy.json"
_BUNDLE = "policy"


def save_bundle(
    spec: PolicySpec,
    weights: Mapping[str, torch.Tensor | np.ndarray[Any, Any]],
    folder: str | os.PathLike[str],
    *,
    command: str | None = None,
    gradient_steps: int | None = None,
) -> Path:
    """Write a bundle; the folder appears whole, or the one before stays.

    Args:
        spec: what the policy is made of.
        weights: `SequenceModel.state_dict()`, as tensors or arrays.
        folder: where to; a bundle that is there is replaced.
        command: the command line that made it, for the record.
        gradient_steps: behind the weights, for the record.
    """
    target = Path(folder)
    aside = stage(target)
    try:
        tensors = {
            name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in weights.items()
        }
        save_file(tensors, str(aside / _WEIGHTS))
        header = {
            "format": FORMAT,
            "spec": spec.to_json(),
            "command": command,
            "gradient_steps": gradient_steps,
            "versions": package_versions(),
        }
        (aside / _HEADER).write_text(json.dumps(header, indent=2))
        publish(aside, target, replace=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def find_bundle(path: str | os.PathLike[str]) -> Path:
    """Return the bundle folder for a bundle, a checkpoint or a run folder.

    Raises:
        UserError: there is none.
    """
    root = Path(path)
    for candidate in (root, root / _BUNDLE):
        if (candidate / _HEADER).exists():
            return candidate
    if not root.exists():
        raise UserError(f"{root} does not exist; name a run folder, a checkpoint or a policy bundle")
    raise UserError(
        f"{root} holds no policy ({_HEADER} is missing); name a run folder whose training wrote a "
        "checkpoint, or a policy bundle"
    )


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON header of the bundle at or under `path`.

    Raises:
        UserError: it is missing, unreadable, or of a newer format.
    """
    folder = find_bundle(path)
    try:
        header: dict[str, Any] = json.loads((folder / _HEADER).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / _HEADER} cannot be read ({error}); export the policy again") from error
    found = header.get("format") if isinstance(header, dict) else None
    if not isinstance(found, int) or "spec" not in header:
        raise UserError(
            f"{folder} is not a policy bundle; read a Hugging Face checkpoint with "
            "rayrl_dt.interop.huggingface.import_huggingface, or name a run folder or a bundle"
        )
    if found != FORMAT:
        raise UserError(f"{folder} has bundle format {found}, this version reads {FORMAT}; upgrade rayrl_dt")
    return header


def load_model(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> SequenceModel:
    """Load the policy network of a bundle, in eval mode.

    Raises:
        UserError: the bundle is missing, truncated, or its weights are of another architecture.
    """
    folder = find_bundle(path)
    try:
        spec = PolicySpec.from_json(read_header(path)["spec"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / _HEADER} is not a whole policy ({error}); export the policy again"
        ) from error
    spec.validate()
    model = SequenceModel(spec)
    try:
        weights = load_file(str(folder / _WEIGHTS), device=str(device))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / _WEIGHTS} is missing or truncated ({error}); export the policy again"
        ) from error
    load_weights(model, weights, source=str(folder))
    return model.to(device).eval()


def load_weights(model: SequenceModel, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Load weights that must fit exactly.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape.
    """
    check_architecture(model.state_dict(), weights, source=source)
    model.load_state_dict(dict(weights))
