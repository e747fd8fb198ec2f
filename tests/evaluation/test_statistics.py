"""Interquartile mean and bootstrap against results worked by hand."""

import numpy as np
import pytest

from rayrl_dt.evaluation.statistics import interquartile_mean, mean, stratified_bootstrap


def test_interquartile_mean_by_hand():
    # Of 1..8 the lowest and highest two go: (3 + 4 + 5 + 6) / 4. The outlier 100 does not count.
    draws = [np.array([[1.0, 2, 3, 4], [8, 7, 6, 5]]), np.array([[5.0, 6, 7, 100], [4, 3, 2, 1]])]
    np.testing.assert_allclose(interquartile_mean(draws), [4.5, 4.5])


def test_mean_weights_values_not_strata():
    np.testing.assert_allclose(mean([np.array([[1.0]]), np.array([[2.0, 6.0]])]), [3.0])


def test_interval_of_a_mean_matches_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = stratified_bootstrap([values], mean, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_strata_are_resampled_apart():
    # Were values drawn across strata, the mean of these constant ones would vary.
    interval = stratified_bootstrap([[0.0, 0.0], [10.0, 10.0]], mean)
    assert (interval.low, interval.estimate, interval.high) == (5.0, 5.0, 5.0)


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=(2, 30))
    assert stratified_bootstrap(values, seed=3) == stratified_bootstrap(values, seed=3)
    assert stratified_bootstrap(values, seed=3) != stratified_bootstrap(values, seed=4)


@pytest.mark.parametrize("strata", [[], [[1.0], []]])
def test_empty_strata_are_refused(strata):
    with pytest.raises(ValueError, match="at least one value"):
        stratified_bootstrap(strata)
