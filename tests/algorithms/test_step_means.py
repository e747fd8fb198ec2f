"""Means of what gradient steps log."""

from __future__ import annotations

import math

import torch

from rayrl_dt.algorithms.step_means import StepMeans


def test_each_value_is_averaged_over_the_steps_that_log_it() -> None:
    means = StepMeans()
    for step in range(4):
        means.add("critic", torch.tensor(float(step)))
        if step % 2 == 0:
            means.add("policy", torch.tensor(10.0 + step))
    assert means.take() == {"critic": 1.5, "policy": 11.0}
    means.add("critic", torch.tensor(7.0))
    assert means.take() == {"critic": 7.0, "policy": 11.0}, "the last one of what no step logs"


def test_steps_that_have_nothing_to_log_do_not_count() -> None:
    means = StepMeans()
    for value in (math.nan, 2.0, math.nan, 4.0):
        means.add("slope", torch.tensor(value))
    assert means.take() == {"slope": 3.0}
    means.add("slope", torch.tensor(math.nan))
    means.add("other", torch.tensor(math.nan))
    found = means.take()
    assert found["slope"] == 3.0 and math.isnan(found["other"]), "the last one of what no step logs"


def test_steps_that_failed_do_not_count() -> None:
    means = StepMeans()
    means.add("critic", torch.tensor(1e9))
    means.begin()
    means.add("critic", torch.tensor(1.0))
    assert means.take() == {"critic": 1.0}
