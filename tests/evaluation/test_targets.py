"""Targets: what users write, what the data allows."""

import numpy as np
import pytest
from builders import build_model

from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.targets import ReturnRange, parse_targets, policy_targets

RETURNS = np.random.default_rng(0).gamma(2.0, 300.0, size=501)


def test_dataset_targets_span_the_5th_to_the_95th_percentile():
    plan = parse_targets("dataset:7", RETURNS)
    assert len(plan.targets) == 7
    assert plan.targets[0] == np.percentile(RETURNS, 5)
    assert plan.targets[-1] == np.percentile(RETURNS, 95)
    np.testing.assert_allclose(np.diff(plan.targets), np.diff(plan.targets)[0])
    assert plan.data == ReturnRange(
        RETURNS.min(), np.percentile(RETURNS, 5), np.percentile(RETURNS, 95), RETURNS.max()
    )
    assert plan.warnings == ()


def test_one_dataset_target_is_the_95th_percentile():
    assert parse_targets("dataset:1", RETURNS).targets == (np.percentile(RETURNS, 95),)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("500, 1500,-3e3", (500.0, 1500.0, -3000.0)),
        ([1, 2.5], (1.0, 2.5)),
        (np.array([3.0, 1.0]), (3.0, 1.0)),
        (7, (7.0,)),
        (np.float32(0.5), (0.5,)),
        ("5,5", (5.0,)),
    ],
)
def test_explicit_targets_keep_their_order(spec, expected):
    plan = parse_targets(spec)
    assert plan.targets == expected
    assert plan.data is None and plan.warnings == ()


@pytest.mark.parametrize(
    "spec", ["", "high", "1,,2", "dataset", "dataset:x", "dataset:0", [], "nan", [np.inf]]
)
def test_unreadable_targets_are_user_errors_of_one_line(spec):
    with pytest.raises(UserError) as error:
        parse_targets(spec, RETURNS)
    assert "\n" not in str(error.value)
    assert "dataset:7" in str(error.value)


@pytest.mark.parametrize("returns", [None, [], np.array([])])
def test_dataset_targets_need_data(returns):
    with pytest.raises(UserError, match="give raw returns instead"):
        parse_targets("dataset:7", returns)


def test_data_with_a_single_return_gives_one_target_and_says_so():
    plan = parse_targets("dataset:7", [5.0] * 10)
    assert plan.targets == (5.0,)
    assert "coincide" in plan.warnings[0]


def test_returns_that_are_apart_by_rounding_alone_are_a_single_return():
    rounded = [0.1 + 0.2, 0.3] * 10
    assert rounded[0] != rounded[1]
    for returns in (rounded, np.multiply(rounded, -1e6)):
        plan = parse_targets("dataset:7", returns)
        assert len(plan.targets) == 1 and "coincide" in plan.warnings[0]
    for returns in (np.linspace(0, 1e-9, 20), np.linspace(1e6, 1e6 + 10, 20), [0.0] * 5 + [1e-3] * 5 + [1e9]):
        plan = parse_targets("dataset:7", returns)
        assert len(set(plan.targets)) == 7 and plan.warnings == ()


def test_targets_outside_the_data_are_kept_and_named():
    plan = parse_targets("-1,5,20", [0.0, 10.0])
    assert plan.targets == (-1.0, 5.0, 20.0)
    assert len(plan.warnings) == 1
    assert "-1, 20" in plan.warnings[0] and "[0, 10]" in plan.warnings[0]


def test_broken_data_is_refused():
    with pytest.raises(UserError, match="NaN"):
        parse_targets("dataset:7", [1.0, np.nan])


@pytest.mark.parametrize("spec", ["dataset:7", "dataset:max", "500,1500", 40.0])
def test_a_policy_that_predicts_its_returns_has_one_target_in_name(make_store, spec):
    asked = parse_targets(spec, RETURNS)
    for rule, backbone in (("decrement", "dt"), ("constant", "reinformer")):
        policy = build_model(make_store(), backbone=backbone, target_rule=rule).spec
        assert policy_targets(policy, spec, RETURNS) == asked
    plan = policy_targets(build_model(make_store(), backbone="reinformer").spec, spec, RETURNS)
    assert plan.ignored and not asked.ignored
    assert plan.targets == (max(asked.targets),) and plan.data == asked.data
    (warning,) = plan.warnings
    assert "predicts its own returns" in warning and "no alignment error" in warning
