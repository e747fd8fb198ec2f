"""Which runs are seeds of one method: their configurations differ in nothing but the seed, and they came as far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.interop.header import HEADER
from rayrl_dt.interop.run_files import CRITIC_COPY, START_COPY
from rayrl_dt.reports.run_folder import RunFolder

__all__ = ["group_seeds"]

_KEPT = (("online", "start_from", START_COPY), ("training", "critic_from", CRITIC_COPY))
"""Keys that name what a run has a copy of in its own folder: another path for each seed."""


def group_seeds(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Return the runs by label; runs whose configurations differ in nothing but the seed share one.

    The label is the method's name where no other group has it. Runs that stopped early share none with those that came
    to their end, and theirs says where they stopped. Several seeds are counted at its end, as in "DT (2 seeds)"; one
    that was run again tells nothing new of the spread, as in "DT (3 runs of 2 seeds)".
    """
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    methods = [(members[0].method, members[0].stopped) for members in groups.values()]
    labeled = {}
    for members, (method, stopped) in zip(groups.values(), methods, strict=True):
        label = method if methods.count((method, stopped)) == 1 else members[0].name
        if label != method and label in {each for each, _ in methods}:
            label = f"{method}: {label}"
        label += "" if stopped is None else f", {stopped}"
        labeled[label + _counted(members)] = members
    return labeled


def _counted(members: Sequence[RunFolder]) -> str:
    """Return what a label says of how many runs share it."""
    if len(members) == 1:
        return ""
    seeds = len({json.dumps(run.info.get("seed")) for run in members})
    if seeds == len(members):
        return f" ({seeds} seeds)"
    return f" ({len(members)} runs of {seeds} seed{'' if seeds == 1 else 's'})"


def _identity(run: RunFolder) -> str:
    try:
        config = yaml.safe_load(run.config_text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        return str(run.path)
    for section, key, copy in _KEPT:
        if isinstance(config.get(section), dict) and key in config[section]:
            config[section][key] = _kept(run.path / copy) or config[section][key]
    same = [run.algorithm, run.task, run.stopped, _without_seed(config)]
    return json.dumps(same, sort_keys=True, default=str)


def _kept(folder: Path) -> list[Any] | None:
    """Return what a kept bundle is of, beside its weights; None where there is none."""
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        spec = header["spec"]
        same = [spec[name] for name in ("model", "dataset", "return_scale", "reward_scale")]
        return [*same, header.get("gradient_steps"), (header.get("critic") or {}).get("steps")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _without_seed(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_seed(item) for key, item in value.items() if key != "seed"}
    return [_without_seed(item) for item in value] if isinstance(value, list) else value
