"""What finetuning did to a policy: how far it fell when it went online, when it was back, whether it still obeys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrl_dt.errors import is_finite

__all__ = ["Course", "Standing", "course_of", "recorded_number"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """A policy at one evaluation.

    Attributes:
        env_steps: environment steps collected by then.
        gradient_steps: taken by then.
        achieved: mean raw return at the highest target.
        error: alignment error over all targets (raw return); None for a single target.
        spearman: rank correlation of asked and achieved; None for a single target.
    """

    env_steps: float
    gradient_steps: float
    achieved: float
    error: float | None
    spearman: float | None


@dataclass(frozen=True)
class Course:
    """A finetuned run, from its evaluations and what it collected.

    Attributes:
        before: the policy that finetuning began with; None if it was not evaluated.
        online: the evaluations since, at least one.
        collected: environment steps, and the mean raw return of what was collected since the line before.
        area: mean of the evaluated return over the environment steps online, linear between evaluations.
        unsteadiness: standard deviation of the change from one evaluation online to the next; None for fewer than 3.
    """

    before: Standing | None
    online: tuple[Standing, ...]
    collected: tuple[tuple[float, float], ...]
    area: float
    unsteadiness: float | None

    @property
    def lowest(self) -> Standing:
        """The evaluation online with the lowest return."""
        return min(self.online, key=lambda each: each.achieved)

    @property
    def best(self) -> Standing:
        """The evaluation online with the highest return."""
        return max(self.online, key=lambda each: each.achieved)

    @property
    def fell(self) -> Standing | None:
        """The first evaluation online below the policy's return from before; None if there is none."""
        if self.before is None:
            return None
        return next((each for each in self.online if each.achieved < self.before.achieved), None)

    @property
    def back(self) -> Standing | None:
        """The first evaluation after `fell` that is at the return from before again; None if there is none."""
        fell, before = self.fell, self.before
        if fell is None or before is None:
            return None
        later = self.online[self.online.index(fell) :]
        return next((each for each in later if each.achieved >= before.achieved), None)


def course_of(records: Sequence[Record]) -> Course | None:
    """Read the lines of a `metrics.jsonl`; None for a run that never went online, or was not evaluated there.

    Lines of killed runs may hold anything: what is no number is left out.
    """
    online = [record for record in records if record.get("phase") == "online"]
    before = [
        found for record in records if record.get("phase") == "pretraining" if (found := _standing(record))
    ]
    standings = tuple(found for record in online if (found := _standing(record)))
    if not standings:
        return None
    collected = (
        (recorded_number(record.get("env_steps")), recorded_number(record.get("collected_return")))
        for record in online
    )
    points = [*before[-1:], *standings]
    steps, achieved = (
        np.array([getattr(each, name) for each in points]) for name in ("env_steps", "achieved")
    )
    span = steps[-1] - steps[0]
    changes = np.diff([each.achieved for each in standings])
    return Course(
        before=before[-1] if before else None,
        online=standings,
        collected=tuple((x, y) for x, y in collected if x is not None and y is not None),
        area=float(np.trapezoid(achieved, steps) / span if span > 0 else achieved.mean()),
        unsteadiness=float(changes.std()) if len(changes) > 1 else None,
    )


def _standing(record: Record) -> Standing | None:
    evaluation = record.get("evaluation")
    if not isinstance(evaluation, Mapping):
        return None
    try:
        highest = max(evaluation["targets"], key=lambda item: item["target"])
        achieved = recorded_number(highest["return_mean"])
    except (KeyError, TypeError, ValueError):
        return None
    steps, gradient_steps = (
        recorded_number(record.get("env_steps")),
        recorded_number(record.get("gradient_steps")),
    )
    if achieved is None or steps is None or gradient_steps is None:
        return None
    several = len(evaluation["targets"]) > 1
    error, rank = (
        recorded_number(evaluation.get(name)) if several else None for name in ("alignment_error", "spearman")
    )
    return Standing(steps, gradient_steps, achieved, error, rank)


def recorded_number(value: Any) -> float | None:
    """Return the value as a finite float, or None: records of a diverged or killed run hold anything."""
    return float(value) if is_finite(value) else None
