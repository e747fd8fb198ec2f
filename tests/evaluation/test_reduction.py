"""The reduction of the alignment error against a baseline."""

from __future__ import annotations

import numpy as np
import pytest

from rayrl_dt.evaluation.reduction import baseline_of, error_reduction
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.target_result import TargetResult


def result(error: float, *, spread: float = 0.0, episodes: int = 20) -> EvaluationResult:
    offsets = spread * np.linspace(-1, 1, episodes)
    return EvaluationResult(
        tuple(
            TargetResult(target, tuple(target + error + offsets), (10,) * episodes)
            for target in (0.0, 50.0, 100.0)
        )
    )


def test_reduction_by_hand() -> None:
    found = error_reduction([result(10), result(30)], [result(5), result(5)])
    assert found is not None
    assert found.estimate == pytest.approx(1 - 5 / 20)
    # The baseline's seeds resampled: both 10, one of each, or both 30.
    assert found.low == pytest.approx(1 - 5 / 10) and found.high == pytest.approx(1 - 5 / 30)


def test_a_worse_method_has_a_negative_reduction() -> None:
    found = error_reduction([result(10)], [result(15)])
    assert found is not None and found.estimate == pytest.approx(-0.5) == found.low == found.high


def test_the_interval_grows_with_the_spread_of_episodes() -> None:
    widths = []
    for spread in (0.0, 5.0, 20.0):
        found = error_reduction([result(30, spread=spread)], [result(10, spread=spread)])
        assert found is not None
        assert found.low <= found.estimate <= found.high
        widths.append(found.high - found.low)
    assert widths[0] == pytest.approx(0) and widths[0] < widths[1] < widths[2]
    assert error_reduction([result(30, spread=5)], [result(10)]) == error_reduction(
        [result(30, spread=5)], [result(10)]
    )


def test_the_interval_is_that_of_a_bootstrap_within_a_bootstrap() -> None:
    """Seeds that differ by nothing but their episodes, each drawn seed with episodes of its own."""
    rng = np.random.default_rng(0)
    returns = rng.normal(10, 8, (2, 20))
    results = [EvaluationResult((TargetResult(-50.0, tuple(each), (10,) * 20),)) for each in returns]
    reference = EvaluationResult((TargetResult(-50.0, (50.0,) * 20, (10,) * 20),))
    found = error_reduction([reference], results)
    drawn = returns[rng.integers(2, size=(20_000, 2))]  # (R, seeds, episodes)
    where = rng.integers(20, size=drawn.shape)
    errors = np.take_along_axis(drawn, where, axis=-1).mean(axis=-1).mean(axis=-1) + 50
    low, high = np.percentile(1 - errors / 100, [2.5, 97.5])
    assert found is not None and found.high - found.low == pytest.approx(high - low, rel=0.06)


def test_nothing_to_compare() -> None:
    assert error_reduction([], [result(1)]) is None
    assert error_reduction([result(1)], []) is None
    assert error_reduction([result(0)], [result(1)]) is None
    # A policy that was asked for one return of its own is measured against nobody.
    other = EvaluationResult((TargetResult(30.0, (29.0,) * 20, (10,) * 20),))
    assert error_reduction([result(10)], [other]) is None
    assert error_reduction([result(10), other], [result(5)]) is None


def test_the_baseline_is_found_by_its_name() -> None:
    assert baseline_of({"RADT": [], "DT (2 seeds)": []}) == "DT (2 seeds)"
    assert baseline_of({"RADT": [], "DT": []}) == "DT"
    assert baseline_of({"DT2": [], "RADT (3 seeds)": []}) is None
