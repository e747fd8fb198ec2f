"""By how much a method's alignment error lies below another's: 1 - E(method) / E(baseline), over all seeds.

Each side's E is the mean over its seeds. The interval is a bootstrap over seeds, and over the episodes within a seed,
so that one seed per side still gets the noise of its episodes (and no more than that).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.statistics import Interval, resampled
from rayrl_dt.seeding import numpy_generator

__all__ = ["BASELINE", "baseline_of", "error_reduction", "method_of"]

BASELINE = "DT"
"""The method that others are measured against, as RADT's paper does."""

_RESAMPLES = 2000
Array = np.ndarray[Any, Any]


def baseline_of(groups: Mapping[str, Sequence[EvaluationResult]]) -> str | None:
    """Return the label of the baseline among labels such as "DT" or "DT (2 seeds)", or None."""
    return next((label for label in groups if method_of(label) == BASELINE), None)


def method_of(label: str) -> str:
    """Return a label without its count of seeds: "DT (wide)" for "DT (wide) (2 seeds)"."""
    return re.sub(r" \(\d+ (seeds|runs of \d+ seeds?)\)$", "", label)


def error_reduction(
    baseline: Sequence[EvaluationResult], method: Sequence[EvaluationResult], *, seed: int = 0
) -> Interval | None:
    """Return 1 - E(method) / E(baseline) with its 95% interval.

    None if a side is empty, if they were not all asked for the same targets, or if the baseline's E is 0.

    Args:
        baseline: one evaluation per seed.
        method: one evaluation per seed.
        seed: of the bootstrap.
    """
    baseline_errors, method_errors = _defined(baseline), _defined(method)
    asked = {tuple(item.target for item in result.targets) for result in (*baseline, *method)}
    if not (baseline_errors and method_errors) or len(asked) > 1:
        return None
    reference = float(np.mean(baseline_errors))
    if reference == 0:
        return None
    estimate = 1 - float(np.mean(method_errors)) / reference
    generator = numpy_generator(seed, "evaluation/reduction")
    below = _errors(baseline, generator)
    ratios = _errors(method, generator) / np.where(below > 0, below, np.nan)
    low, high = np.nanpercentile(1 - ratios, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


def _defined(results: Sequence[EvaluationResult]) -> list[float]:
    """E of each evaluation; none at all if one has none."""
    errors = [result.alignment_error for result in results if result.alignment_error is not None]
    return errors if len(errors) == len(results) else []


def _errors(results: Sequence[EvaluationResult], generator: np.random.Generator) -> Array:
    """`(R,)` resampled means over seeds of E."""
    per_seed = np.stack([_resampled(result, generator) for result in results])  # (seeds, R)
    chosen = generator.integers(len(results), size=per_seed.shape)
    # Each of them with episodes of its own, also where a seed is drawn twice.
    columns = (np.arange(_RESAMPLES) + np.arange(len(results))[:, None]) % _RESAMPLES
    means: Array = per_seed[chosen, columns].mean(axis=0)
    return means


def _resampled(result: EvaluationResult, generator: np.random.Generator) -> Array:
    """`(R,)` values of E of one evaluation, its episodes drawn with replacement, as `EvaluationResult` draws them."""
    draws = resampled([item.returns for item in result.targets], generator, _RESAMPLES, paired=True)
    errors = [
        np.abs(draw.mean(axis=1) - item.target) for draw, item in zip(draws, result.targets, strict=True)
    ]
    found: Array = np.mean(errors, axis=0)
    return found
