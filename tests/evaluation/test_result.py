"""Alignment metrics against hand results, their invariances, and the JSON contract."""

import json

import numpy as np
import pytest
from builders import EVALUATION_KEYS
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.reduction import error_reduction
from rayrl_dt.evaluation.result import EvaluationResult, blind_error
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.evaluation.targets import ReturnRange


def result(targets, returns, **fields):
    return EvaluationResult(
        tuple(
            TargetResult(target, tuple(values), (10,) * len(values))
            for target, values in zip(targets, returns, strict=True)
        ),
        **fields,
    )


def test_metrics_by_hand():
    evaluation = result([0, 100, 200], [[10, 30], [90, 100], [150, 150]])
    # Means 20, 95, 150: gaps 20, 5, 50. Episodes: (10 + 30) / 2, (10 + 0) / 2, 50.
    assert evaluation.alignment_error == pytest.approx(25.0)
    assert evaluation.alignment_error_relative == pytest.approx(0.125)
    assert evaluation.per_episode_error == pytest.approx(25.0)
    assert evaluation.spearman == 1.0
    assert evaluation.targets[0].return_std == pytest.approx(10.0)


def test_per_episode_error_counts_spread_that_the_mean_hides():
    evaluation = result([0, 10], [[-5, 5], [5, 15]])
    assert evaluation.alignment_error == 0.0
    assert evaluation.per_episode_error == pytest.approx(5.0)


returns_lists = st.lists(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=4), min_size=2, max_size=6)


@given(returns_lists)
@settings(max_examples=40, deadline=None)
def test_error_is_zero_iff_every_mean_return_is_its_target(returns):
    exact = result([TargetResult(0, v, (1,) * len(v)).return_mean for v in returns], returns)
    assert exact.alignment_error == 0.0
    off = result([item.target + (1.0 if k == 0 else 0.0) for k, item in enumerate(exact.targets)], returns)
    assert off.alignment_error > 0.0


@given(returns_lists, st.floats(0.01, 100.0))
@settings(max_examples=40, deadline=None)
def test_relative_error_is_invariant_under_reward_rescaling(returns, scale):
    targets = np.linspace(-500, 500, len(returns))
    plain = result(targets, returns)
    scaled = result(targets * scale, [np.multiply(values, scale) for values in returns])
    assert scaled.alignment_error_relative == pytest.approx(plain.alignment_error_relative)
    assert scaled.alignment_error == pytest.approx(scale * plain.alignment_error, abs=1e-9)
    assert plain.per_episode_error >= plain.alignment_error - 1e-9


def test_metrics_do_not_depend_on_the_order_of_targets():
    forward = result([1, 2, 3], [[2], [2.5], [9]])
    backward = result([3, 2, 1], [[9], [2.5], [2]])
    for name in ("alignment_error", "alignment_error_relative", "spearman", "highest"):
        assert getattr(forward, name) == getattr(backward, name)


def test_spearman_averages_ties_and_knows_when_it_is_undefined():
    # Ranks 1, 2, 3, 4 against 1, 2.5, 2.5, 4.
    assert result([1, 2, 3, 4], [[5], [6], [6], [9]]).spearman == pytest.approx(0.9486832981)
    assert result([1, 2], [[5], [5]]).spearman is None
    assert result([1], [[5]]).spearman is None
    assert result([1], [[5]]).alignment_error_relative is None


def test_score_is_that_of_the_highest_target_not_of_the_best():
    evaluation = result([300, 100], [[50], [90]], score_reference=(0.0, 200.0))
    assert evaluation.normalized_score == pytest.approx(25.0)
    assert evaluation.alignment_error_points == pytest.approx(100 * 130 / 200)
    assert evaluation.to_json()["normalized_score_target"] == 300.0


def test_interval_is_as_wide_as_what_episodes_share_across_targets():
    """The j-th episodes of all targets begin alike: seven targets of twenty such tell as much as twenty episodes."""
    shared = np.random.default_rng(3).normal(0, 5.0, size=20)
    targets = np.arange(7) * 100.0
    interval = result(targets, [target + 60 + shared for target in targets]).alignment_error_interval
    half = 1.96 * shared.std() / np.sqrt(20)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    # Of targets with other numbers of episodes nothing is known: each is drawn on its own.
    uneven = [targets[0] + 60 + shared[:19], *(target + 60 + shared for target in targets[1:])]
    alone = result(targets, uneven).alignment_error_interval
    assert alone.high - alone.low == pytest.approx(2 * half / np.sqrt(7), rel=0.1)
    pair = error_reduction(
        [result(targets, [[target + 100.0] * 20 for target in targets])],
        [result(targets, [target + 60 + shared for target in targets])],
    )
    assert pair.high - pair.low == pytest.approx(2 * half / 100, rel=0.1)


def test_interval_holds_the_error_and_is_seeded():
    rng = np.random.default_rng(1)
    returns = [rng.normal(k, 3.0, size=20) for k in (0, 20, 40)]
    first, again = result([10, 20, 30], returns, seed=5), result([10, 20, 30], returns, seed=5)
    interval = first.alignment_error_interval
    assert interval.low < first.alignment_error < interval.high
    assert interval == again.alignment_error_interval
    assert interval.estimate == pytest.approx(first.alignment_error)


def test_json_has_the_promised_keys_and_unknown_values_are_null():
    values = json.loads(json.dumps(result([1], [[2]]).to_json(), allow_nan=False))
    assert set(values) >= EVALUATION_KEYS
    for key in EVALUATION_KEYS - {"targets", "alignment_error", "per_episode_error"}:
        assert values[key] is None
    (target,) = values["targets"]
    assert set(target) >= {"target", "return_mean", "return_std", "length_mean", "episodes"}
    assert (target["target"], target["return_mean"], target["length_mean"], target["episodes"]) == (
        1,
        2,
        10,
        1,
    )


def test_json_round_trip():
    evaluation = result(
        np.array([1, 2], np.float32),
        np.array([[1.5, 2.5], [0.5, 4]], np.float32),
        env="Hopper-v5",
        dataset="minari:a/b-v0",
        checkpoint="checkpoints/last",
        env_steps=np.int64(40),
        env_steps_per_s=12.5,
        score_reference=(0.0, 10.0),
        score_note="by hand",
        data=ReturnRange(0.0, 1.0, 2.0, 3.0),
        gradient_steps=100,
        seed=3,
        warnings=("careful",),
    )
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    assert EvaluationResult.from_json(json.loads(text)) == evaluation


def test_json_is_finite_even_if_the_clock_stood_still():
    assert result([1], [[2]], env_steps_per_s=float("inf")).to_json()["env_steps_per_s"] is None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"targets": []},
        {"targets": [{"target": 1}]},
        {"targets": 3},
        [],
        {"targets": [{"target": 1, "returns": ["x"], "lengths": [1]}]},
        {"targets": [{"target": 1, "returns": [1.0], "lengths": [float("inf")]}]},
        {"targets": [{"target": 1, "returns": [1.0], "lengths": [1]}], "data": {"a": 1}},
    ],
)
def test_what_is_not_an_evaluation_is_a_user_error(values):
    with pytest.raises(UserError):
        EvaluationResult.from_json(values)


@pytest.mark.parametrize(
    ("returns", "lengths"), [((), ()), ((1.0,), ()), ((float("nan"),), (1,)), ((float("inf"),), (1,))]
)
def test_bad_episodes_are_refused(returns, lengths):
    with pytest.raises(UserError):
        TargetResult(1.0, returns, lengths)


@pytest.mark.parametrize("reference", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_bad_references_are_refused(reference):
    with pytest.raises(UserError, match="reference"):
        result([1], [[1]], score_reference=reference)


def test_blind_policy():
    assert blind_error(np.linspace(8, 1138, 7)) == pytest.approx(2 / 7)
    assert blind_error([0, 1]) == pytest.approx(0.5)
    assert blind_error([3]) is None
    # It is what a policy that always achieves the middle target scores.
    blind = result([0, 1, 5], [[1], [1], [1]])
    assert blind.alignment_error_relative == pytest.approx(blind_error([0, 1, 5]))


def test_a_policy_that_was_asked_for_nothing_has_no_alignment():
    evaluation = result([300], [[90, 110]], targets_ignored=True, score_reference=(0, 200))
    assert evaluation.highest.return_mean == 100.0 and evaluation.normalized_score == 50.0
    values = json.loads(json.dumps(evaluation.to_json()))
    assert values.keys() >= EVALUATION_KEYS
    none = {key for key in values if key.startswith("alignment") or key in ("per_episode_error", "spearman")}
    assert len(none) == 6 and all(values[key] is None for key in none)
    assert values["normalized_score"] == 50.0 and values["normalized_score_target"] is None
    assert EvaluationResult.from_json(values) == evaluation
    with pytest.raises(UserError, match="has 2 targets, and its policy ignores them"):
        result([1, 2], [[1], [2]], targets_ignored=True)


def test_results_from_before_policies_could_ignore_targets_can_be_read():
    values = result([0, 100], [[10], [90]]).to_json()
    del values["targets_ignored"]
    assert EvaluationResult.from_json(values).alignment_error == 10.0
