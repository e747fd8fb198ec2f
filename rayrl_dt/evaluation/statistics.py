"""Robust means and bootstrap intervals over a handful of seeds or episodes.

The interquartile mean and its stratified bootstrap follow Agarwal et al. 2021, "Deep reinforcement learning
at the edge of the statistical precipice": strata are tasks (or targets), and runs (or episodes) are drawn
with replacement within each stratum. Legend: R resamples, n values of one stratum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrl_dt.seeding import numpy_generator

__all__ = ["Interval", "interquartile_mean", "mean", "resampled", "stratified_bootstrap"]

Array = np.ndarray[Any, Any]
Statistic = Callable[[Sequence[Array]], Array]
"""Maps the draws of each stratum, `(R, n)` each, to `(R,)` values."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile bootstrap interval."""

    estimate: float
    low: float
    high: float


def mean(draws: Sequence[Array]) -> Array:
    """Return the `(R,)` mean over all values of all strata, each `(R, n)`."""
    result: Array = np.concatenate(draws, axis=1).mean(axis=1)
    return result


def interquartile_mean(draws: Sequence[Array]) -> Array:
    """Return the `(R,)` mean of the middle half of all values of all strata, each `(R, n)`."""
    from scipy import stats  # as in `EvaluationResult.spearman`

    return np.asarray(stats.trim_mean(np.concatenate(draws, axis=1), 0.25, axis=1))


def resampled(
    strata: Sequence[Sequence[float] | Array], generator: np.random.Generator, resamples: int, *, paired: bool
) -> list[Array]:
    """Return draws `(R, n)` of each stratum, with replacement.

    Args:
        strata: the values of each stratum; the strata may differ in size.
        generator: draws.
        resamples: R.
        paired: whether values of one place belong together wherever the strata are of one size, as those of episodes
            that begin alike: they are drawn together then. Were each stratum drawn on its own, what all strata share
            would average out, and intervals of their mean be too narrow.
    """
    values = [np.asarray(stratum, np.float64).ravel() for stratum in strata]
    if not values or any(stratum.size == 0 for stratum in values):
        raise ValueError("every stratum needs at least one value")
    sizes = [stratum.size for stratum in values]
    if paired and len(set(sizes)) == 1:
        places = [generator.integers(sizes[0], size=(resamples, sizes[0]))] * len(values)
    else:
        places = [generator.integers(size, size=(resamples, size)) for size in sizes]
    return [stratum[place] for stratum, place in zip(values, places, strict=True)]


def stratified_bootstrap(
    strata: Sequence[Sequence[float] | Array],
    statistic: Statistic = interquartile_mean,
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    paired: bool = False,
) -> Interval:
    """Return the statistic of the data and its bootstrap interval.

    With few values the interval is too narrow, and a statistic that cannot be negative (an absolute error) is
    biased upwards near zero: read it as a scale of the noise, not as a test.

    Args:
        strata: the values of each stratum; the strata may differ in size.
        statistic: of the draws of all strata, vectorized over resamples.
        seed: the same data and seed give the same interval.
        resamples: number of bootstrap draws.
        confidence: mass between the ends.
        paired: see `resampled`.
    """
    draws = resampled(strata, numpy_generator(seed, "evaluation/bootstrap"), resamples, paired=paired)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(statistic(draws), [tail, 100 - tail])
    estimate = statistic([np.asarray(stratum, np.float64).ravel()[None] for stratum in strata])[0]
    return Interval(float(estimate), float(low), float(high))
