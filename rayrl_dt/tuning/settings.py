"""The section `tune:` of a sweep's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rayrl_dt.errors import UserError, one_of, suggest, whole
from rayrl_dt.settings import Settings, choice, count, optional, setting

__all__ = [
    "ALIGNMENT",
    "LOGGERS",
    "METRICS",
    "RETURN",
    "SCHEDULERS",
    "SEARCHES",
    "TuneSettings",
    "read_settings",
]

RETURN, ALIGNMENT = "evaluation/return_mean", "evaluation/alignment_error"
METRICS = {RETURN: "max", ALIGNMENT: "min"}
"""What every report of a trial holds, and the mode that is meant where none is given."""
SCHEDULERS = ("none", "asha", "median", "pbt")
SEARCHES = ("random", "optuna")
LOGGERS = ("wandb", "mlflow")
"""Where trials can be logged to beside TensorBoard, by packages of these names."""


def _metric(name: str, value: Any) -> str:
    if isinstance(value, str) and value in METRICS:
        return str(value)
    # Without the metric in its reports a sweep could not tell one trial from another.
    raise UserError(f"{name} is {value!r}, which no iteration reports.{suggest(str(value), METRICS)}")


def _seeds(name: str, value: Any) -> tuple[int, ...]:
    seeds = value if isinstance(value, (list, tuple)) else ()
    if not seeds or len(set(map(str, seeds))) < len(seeds):
        raise UserError(f"{name} is {value!r}; list different whole numbers, as in [0, 1, 2]")
    return tuple(whole(name, seed) for seed in seeds)


def _loggers(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{name} is {value!r}; list names: [wandb]")
    return tuple(one_of(name, logger, LOGGERS) for logger in value)


@dataclass(frozen=True)
class TuneSettings(Settings):
    """The section `tune:`.

    Attributes:
        num_samples: draws from the random spaces; each is run at every point of the grids and with every seed.
        metric: a key of `METRICS`. Policies that predict their own returns have the mean return by default.
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

    section: ClassVar[str] = "tune"

    num_samples: int = setting(1, count(1))
    metric: str = setting(ALIGNMENT, _metric)
    mode: str | None = setting(None, optional(choice("min", "max")))
    scheduler: str = setting("none", choice(*SCHEDULERS))
    search: str = setting("random", choice(*SEARCHES))
    seeds: tuple[int, ...] | None = setting(None, optional(_seeds))
    max_concurrent: int | None = setting(None, optional(count(1)))
    max_failures: int = setting(2, count())
    grace_period: int = setting(1, count(1))
    loggers: tuple[str, ...] = setting((), _loggers)

    @property
    def best(self) -> str:
        """The mode that counts: "min" or "max"."""
        return self.mode or METRICS[self.metric]


def read_settings(values: Mapping[str, Any], *, samples: int | None = None) -> TuneSettings:
    """Read the section `tune:` of a config file's content; `samples` overrides its `num_samples`.

    Raises:
        UserError: the section is missing, or a key or value is wrong.
    """
    section = values.get("tune")
    if not isinstance(section, dict):
        raise UserError(
            f"section tune is {section!r}; a sweep needs one, such as tune: {{num_samples: 8, scheduler: asha}}"
        )
    override = {} if samples is None else {"num_samples": samples}
    return TuneSettings.read({**section, **override})
