"""Targets as a user may write them: read, or refused in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.targets import ReturnRange, parse_targets

NUMBERS = st.floats(-1e6, 1e6)
RETURNS = st.lists(NUMBERS, min_size=1, max_size=20)
SOME = settings(max_examples=60, deadline=None)


@SOME
@given(wanted=st.lists(NUMBERS, min_size=1, max_size=6), space=st.sampled_from(["", " "]))
def test_numbers_are_taken_as_they_are(wanted: list[float], space: str) -> None:
    """As text, as a list, as an array: the same targets, in the order given and each once."""
    once = tuple(dict.fromkeys(wanted))
    text = f",{space}".join(map(repr, wanted))
    assert parse_targets(text).targets == once
    assert parse_targets(wanted).targets == parse_targets(np.array(wanted)).targets == once
    assert parse_targets(wanted[0]).targets == once[:1]


@SOME
@given(returns=RETURNS, count=st.integers(1, 30))
def test_a_spread_lies_within_the_data(returns: list[float], count: int) -> None:
    plan = parse_targets(f"dataset:{count}", returns)
    data = ReturnRange.of(returns)
    targets = plan.targets
    assert plan.data == data and all(math.isfinite(target) for target in targets)
    assert min(returns) <= data.p5 <= data.p95 <= max(returns)
    assert targets[-1] == data.p95
    if data.p5 == data.p95:
        assert len(targets) == 1
        return
    assert len(targets) == count and list(targets) == sorted(targets)
    if count > 1:
        assert targets[0] == data.p5
        steps = np.diff(targets)
        np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3, atol=1e-6 * max(map(abs, targets)))
    # What a bundle knows of its data is enough.
    assert parse_targets(f"dataset:{count}", data=data) == plan


@SOME
@given(returns=RETURNS, wanted=st.lists(NUMBERS, min_size=1, max_size=6))
def test_what_no_episode_reached_is_kept_and_said(returns: list[float], wanted: list[float]) -> None:
    plan = parse_targets(wanted, returns)
    outside = [target for target in plan.targets if not min(returns) <= target <= max(returns)]
    assert set(plan.targets) == set(wanted)
    assert bool(plan.warnings) == bool(outside)


@SOME
@given(text=st.text(max_size=20) | st.text("dataset:max0123456789.,-+einf ", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        plan = parse_targets(text, [1.0, 2.0, 3.0])
    except UserError as error:
        assert "\n" not in str(error) or "\n" in text
        return
    assert plan.targets and all(math.isfinite(target) for target in plan.targets)
    assert len(set(plan.targets)) == len(plan.targets)


@SOME
@given(returns=st.lists(NUMBERS, max_size=3), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_returns_that_are_none_are_refused(returns: list[float], bad: float) -> None:
    with pytest.raises(UserError):
        ReturnRange.of([*returns, bad])
    with pytest.raises(UserError):
        parse_targets([*returns, bad])
