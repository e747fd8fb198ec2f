"""What a run leaves beside its checkpoints: files that are never seen half, and what a resumed run reads of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.algorithms.learner import GRADIENT_STEPS
from rayrl_dt.interop.run_files import METRICS, RECORD, read_records, step_of

__all__ = ["checkpoint_score", "provenance", "records_up_to", "write_json", "write_yaml"]


def records_up_to(folder: Path, gradient_steps: int) -> list[dict[str, Any]]:
    """Return the records that a restored run has behind it; later ones are cut from the file."""
    if not (folder / METRICS).exists():
        return []
    records, _ = read_records(folder)
    kept = [record for record in records if 0 <= step_of(record) <= gradient_steps]
    _write(folder / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def checkpoint_score(evaluation: Mapping[str, Any]) -> float:
    """Return what the best checkpoint has most of: minus the alignment error, or the return at a single target.

    A single target is asked for to get as much as there is, and may be out of reach, or be surpassed.
    """
    error, targets = evaluation["alignment_error"], evaluation["targets"]
    return float(targets[0]["return_mean"]) if error is None or len(targets) == 1 else -float(error)


def provenance(folder: Path, command: str | None, gradient_steps: int) -> dict[str, Any]:
    """Return how a run was started, and each time that it was resumed: commands, times and gradient steps."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = folder / RECORD
    if gradient_steps == 0 or not record.exists():
        return {"command": command, "created": now, "resumed": []}
    before = json.loads(record.read_text())
    again = {"command": command, "created": now, GRADIENT_STEPS: gradient_steps}
    return {
        "command": before.get("command"),
        "created": before.get("created"),
        "resumed": [*before.get("resumed", []), again],
    }


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a YAML file."""
    _write(path, yaml.safe_dump(dict(values), sort_keys=False))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    _write(path, json.dumps(values, indent=2))


def _write(path: Path, text: str) -> None:
    """Write a file that is never seen half."""
    aside = path.with_suffix(".tmp")
    try:
        aside.write_text(text)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
