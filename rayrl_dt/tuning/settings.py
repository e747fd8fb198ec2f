"""The section `tune:` of a sweep's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rayrl_dt.errors import UserError, suggest

__all__ = ["LOGGERS", "METRICS", "SCHEDULERS", "SEARCHES", "Settings", "read_settings"]

METRICS = {"evaluation/return_mean": "max", "evaluation/alignment_error": "min"}
"""What every report of a trial holds, and the mode that is meant where none is given."""
SCHEDULERS = ("none", "asha", "median", "pbt")
SEARCHES = ("random", "optuna")
LOGGERS = {"wandb": "wandb", "mlflow": "mlflow"}
"""Where trials can be logged to beside TensorBoard, and the package that each needs."""
_MODES = ("min", "max")


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
        loggers: of `LOGGERS` (extras), beside TensorBoard.
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
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("metric", METRICS), ("scheduler", SCHEDULERS), ("search", SEARCHES)):
            value = getattr(self, name)
            if value not in allowed:
                # Without the metric in its reports a sweep could not tell one trial from another.
                why = ", which no iteration reports" if name == "metric" else ""
                raise UserError(f"tune.{name} is {value!r}{why}.{suggest(str(value), allowed)}")
        for logger in self.loggers:
            if logger not in LOGGERS:
                raise UserError(f"tune.loggers has {logger!r}.{suggest(str(logger), LOGGERS)}")
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


def read_settings(values: Mapping[str, Any], *, samples: int | None = None) -> Settings:
    """Read the section `tune:` of a config file's content.

    Args:
        values: the file's content.
        samples: overrides `num_samples`.

    Raises:
        UserError: the section is missing, or a key or value is wrong.
    """
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
    for key, example in (
        ("seeds", "different whole numbers, as in [0, 1, 2]"),
        ("loggers", "names: [wandb]"),
    ):
        if chosen.get(key) is not None:
            if not isinstance(chosen[key], list):
                raise UserError(f"tune.{key} is {chosen[key]!r}; list {example}")
            chosen[key] = tuple(chosen[key])
    if samples is not None:
        chosen["num_samples"] = samples
    return Settings(**chosen)
