"""What a sweep's file asks for: its `tune:` section, checked with its spaces before anything is scheduled."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rayrl_dt.config_files import build_config
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.tuning.space import Space, find_spaces, replaced, value_at

__all__ = ["METRICS", "SCHEDULERS", "SEARCHES", "SEED", "Plan", "Settings", "make_plan"]

METRICS = {"evaluation/return_mean": "max", "evaluation/alignment_error": "min"}
"""What every report of a trial holds, and the mode that is meant where none is given."""
SCHEDULERS = ("none", "asha", "median", "pbt")
SEARCHES = ("random", "optuna")
SEED = "debugging.seed"
_INTERVAL = "evaluation.evaluation_interval"
_DATASET = "offline_data.dataset"
_MODES = ("min", "max")
# PBT goes on from another trial's weights: only what leaves their shapes and the data's scales alone may change.
_MUTABLE = ("training", "online")


@dataclass(frozen=True)
class Settings:
    """The section `tune:`.

    Attributes:
        num_samples: draws from the random spaces; each is run at every point of the grids and with every seed.
        metric: a key of `METRICS`.
        mode: "min" or "max"; None for what the metric means.
        scheduler: "none", "asha" (stops the worse trials early), "median" (stops those below the median), or "pbt"
            (the worse take over the better ones' weights and go on with changed values).
        search: "random", with grids, or "optuna" (an extra; no grids).
        seeds: of each sample; None for the config's own `debugging.seed`.
        max_concurrent: trials at a time; None for as many as the cluster holds.
        max_failures: how often a trial that dies starts again from its newest checkpoint.
        grace_period: evaluations before a scheduler stops a trial, or between two mutations of PBT.
    """

    num_samples: int = 1
    metric: str = "evaluation/alignment_error"
    mode: str | None = None
    scheduler: str = "none"
    search: str = "random"
    seeds: tuple[int, ...] | None = None
    max_concurrent: int | None = None
    max_failures: int = 2
    grace_period: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("metric", METRICS), ("scheduler", SCHEDULERS), ("search", SEARCHES)):
            value = getattr(self, name)
            if value not in allowed:
                # Without the metric in its reports a sweep could not tell one trial from another.
                why = ", which no iteration reports" if name == "metric" else ""
                raise UserError(f"tune.{name} is {value!r}{why}.{suggest(str(value), allowed)}")
        if self.mode is not None and self.mode not in _MODES:
            raise UserError(f"tune.mode is {self.mode!r}.{suggest(str(self.mode), _MODES)}")
        for name, least in (
            ("num_samples", 1),
            ("max_concurrent", 1),
            ("max_failures", 0),
            ("grace_period", 1),
        ):
            value = getattr(self, name)
            if value is None and name == "max_concurrent":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"tune.{name} is {value!r}; it must be a whole number of at least {least}")
        seeds = self.seeds
        if seeds is not None and (
            not seeds
            or len(set(seeds)) < len(seeds)
            or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
        ):
            raise UserError(f"tune.seeds is {list(seeds)}; list different whole numbers, as in [0, 1, 2]")

    @property
    def best(self) -> str:
        """The mode that counts: "min" or "max"."""
        return self.mode or METRICS[self.metric]


@dataclass(frozen=True, eq=False)
class Plan:
    """A sweep, ready to be scheduled.

    Attributes:
        name: of the sweep.
        values: the config file's content without `tune`, the seeds among its spaces.
        spaces: what is searched.
        settings: the section `tune:`.
    """

    name: str
    values: Mapping[str, Any]
    spaces: tuple[Space, ...]
    settings: Settings

    def at(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the content of a single run's file: each space at its first value, unless `changes` has one."""
        return replaced(self.values, {space.path: space.edges[0] for space in self.spaces} | dict(changes))

    @property
    def corners(self) -> list[dict[str, Any]]:
        """Single runs that between them show every space at its edges, one space at a time."""
        varied = [{space.path: edge} for space in self.spaces for edge in space.edges[1:]]
        return [self.at(changes) for changes in ({}, *varied)]

    @property
    def datasets(self) -> list[str]:
        """The data sets that trials will load."""
        return list(dict.fromkeys(str(value_at(values, _DATASET)) for values in self.corners))

    @property
    def param_space(self) -> dict[str, Any]:
        """What Ray Tune draws the trials' configs from."""
        return replaced(self.values, {space.path: space.domain() for space in self.spaces})


def make_plan(values: Mapping[str, Any], *, default_name: str, samples: int | None = None) -> Plan:
    """Reads a sweep from a config file's content.

    Every trial is evaluated in each iteration, unless `evaluation.evaluation_interval` says how many make one report.

    Args:
        values: the file's content.
        default_name: where the file has no `name`.
        samples: overrides `tune.num_samples`.

    Raises:
        UserError: a key, value or space is wrong, there is nothing to search, or parts do not fit each other.
    """
    settings = _settings(values, samples)
    name = str(values.get("name") or default_name)
    content = {key: value for key, value in values.items() if key != "tune"}
    interval = value_at(content, _INTERVAL)
    if interval is None:
        content = replaced(content, {_INTERVAL: 1})
    elif isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise UserError(
            f"{_INTERVAL} is {interval!r}, so no iteration would report {settings.metric}; set it to 1 or more"
        )
    if settings.seeds is not None:
        content = replaced(content, {SEED: {"grid": list(settings.seeds)}})
        if isinstance(value_at(values, SEED), dict):
            raise UserError(f"tune.seeds and a space at {SEED} say the same thing twice; keep tune.seeds")
    spaces = find_spaces(content)
    if not spaces:
        raise UserError(
            "there is no search space; give a key one, such as training.lr: {loguniform: [1e-4, 1e-2]}, "
            "or train this file with rayrl-dt train"
        )
    _check_together(settings, spaces)
    plan = Plan(name, content, spaces, settings)
    for corner in plan.corners:
        build_config(corner)
    return plan


def _settings(values: Mapping[str, Any], samples: int | None) -> Settings:
    section = values.get("tune")
    if not isinstance(section, dict):
        raise UserError(
            f"section tune is {section!r}; a sweep needs one, such as tune: {{num_samples: 8, scheduler: asha}}"
        )
    known = [field.name for field in fields(Settings)]
    for key in section:
        if key not in known:
            raise UserError(f"tune has no key {key!r}.{suggest(str(key), known)}")
    chosen = dict(section)
    seeds = chosen.get("seeds")
    if seeds is not None:
        if not isinstance(seeds, list):
            raise UserError(f"tune.seeds is {seeds!r}; list different whole numbers, as in [0, 1, 2]")
        chosen["seeds"] = tuple(seeds)
    if samples is not None:
        chosen["num_samples"] = samples
    return Settings(**chosen)


def _check_together(settings: Settings, spaces: tuple[Space, ...]) -> None:
    """Refuses schedulers and searches that cannot work with these spaces."""
    grids = [space.path for space in spaces if space.kind == "grid"]
    if settings.search == "optuna":
        if importlib.util.find_spec("optuna") is None:
            raise UserError(
                "tune.search optuna needs the package: pip install 'rayrl_dt[optuna]' (or search: random)"
            )
        if grids:
            raise UserError(
                f"tune.search optuna knows no grids ({', '.join(grids)}); write choice, or set search: random"
            )
        if settings.scheduler == "pbt":
            raise UserError("tune.scheduler pbt changes values itself; set tune.search: random")
    if settings.scheduler != "pbt":
        return
    if grids:
        raise UserError(f"tune.scheduler pbt cannot mutate a grid ({', '.join(grids)}); write choice")
    fixed = [space.path for space in spaces if space.path.split(".")[0] not in _MUTABLE]
    if fixed:
        raise UserError(
            f"tune.scheduler pbt goes on from other trials' weights, {fixed[0]} must not change under them; "
            f"search sections {' and '.join(_MUTABLE)} only"
        )
    if settings.num_samples < 2:
        raise UserError(
            f"tune.scheduler pbt needs a population, num_samples is {settings.num_samples}; set 4"
        )
