"""The header of a policy bundle, `policy.json`: read, and refused where it is not whole, or of another version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rayrl_dt.errors import UserError, one_line
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec

__all__ = ["FORMAT", "GRAPH", "HEADER", "read_header", "read_spec"]

FORMAT = 3
"""Those before are read as well, but for RADT of format 1: its return attention was computed otherwise then."""
HEADER = "policy.json"
GRAPH = "policy.onnx"
"""Beside a header that an ONNX graph was exported with; such a folder is no bundle."""
_NOT_WHOLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError),
    *(TypeError, ValueError),
)
"""What our code, gymnasium's and numpy's raise at values of other types than they are written with."""
_MODEL = {each.name for each in fields(ModelConfig)}
# The first is as bundles before the American spelling have it.
_SPEC = {"normaliser", *(each.name for each in fields(PolicySpec))}


def read_header(folder: Path) -> dict[str, Any]:
    """Return the header of the bundle in a folder.

    Raises:
        UserError: it is no header of a bundle, or its format is not read any more, or not yet.
    """
    try:
        header: dict[str, Any] = json.loads((folder / HEADER).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / HEADER} cannot be read ({one_line(error)}); export the policy again"
        ) from error
    found = header.get("format") if isinstance(header, dict) else None
    if not isinstance(found, int) and (folder / GRAPH).exists():
        raise UserError(
            f"{folder} holds an ONNX graph, which onnxruntime runs and this package does not; name the run folder or "
            "the bundle that it was exported from"
        )
    if not isinstance(found, int) or "spec" not in header:
        raise UserError(
            f"{folder} is not a policy bundle; read a Hugging Face checkpoint with rayrl-dt import, or name a run "
            "folder or a bundle"
        )
    if not 1 <= found <= FORMAT:
        raise UserError(
            f"{folder} has bundle format {found}, this version reads up to {FORMAT}; upgrade rayrl_dt"
        )
    if found == 1 and _backbone(header["spec"]) == "radt":
        raise UserError(
            f"{folder} holds a RADT policy of bundle format 1, whose return attention was computed otherwise than it "
            "is now, so its weights would act otherwise than they were trained: train it again with rayrl-dt train"
        )
    return header


def read_spec(header: Mapping[str, Any], source: Path) -> PolicySpec:
    """Return the specification in the content of a `policy.json`.

    Raises:
        UserError: it is not whole, or asks for what cannot work.
    """
    try:
        _check_known(header)
        spec = PolicySpec.from_json(header["spec"])
        spec.validate()
        spec.head  # noqa: B018 (it takes the bounds of the actions, which may be no numbers)
        return spec
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except _NOT_WHOLE as error:
        raise UserError(
            f"{source} is not a whole policy ({one_line(error)}); export the policy again"
        ) from error


def _check_known(header: Mapping[str, Any]) -> None:
    """Refuse what a newer version wrote: a choice that is left out here would make another policy of it."""
    spec = header["spec"]
    model = spec.get("model")
    unknown = sorted(spec.keys() - _SPEC)
    unknown += [f"model.{key}" for key in sorted(model.keys() - _MODEL)] if isinstance(model, dict) else []
    if unknown:
        writer = (header.get("versions") or {}).get("rayrl_dt", "another version")
        raise UserError(
            f"it was written by rayrl_dt {writer} and has {', '.join(unknown)}, which this version does not know; "
            "upgrade rayrl_dt"
        )


def _backbone(spec: Any) -> Any:
    model = spec.get("model") if isinstance(spec, dict) else None
    return model.get("backbone") if isinstance(model, dict) else None
