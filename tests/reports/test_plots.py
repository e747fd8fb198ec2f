"""Figures hold what a reader needs; looked up among their artists."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.reports import plots
from rayrl_dt.reports.learning_curve import learning_curve
from rayrl_dt.reports.style import save_png


def evaluation(means, targets=(0.0, 50.0, 100.0)):
    return EvaluationResult(
        tuple(TargetResult(t, (m - 1, m, m + 1), (5, 5, 5)) for t, m in zip(targets, means, strict=True))
    )


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_desired_vs_achieved_shows_identity_and_the_data_maximum():
    figure = plots.desired_vs_achieved({"RADT": [evaluation([5, 55, 80])]}, data_max=120.0)
    (axes,) = figure.axes
    drawn = lines(axes)
    identity = drawn["achieved = desired"]
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    assert identity.get_xdata()[0] <= 0.0 and identity.get_xdata()[1] >= 100.0
    np.testing.assert_array_equal(drawn["data's maximum, 120"].get_xdata(), [120.0, 120.0])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "RADT" in labels
    assert "(raw)" in axes.get_xlabel() and "(raw)" in axes.get_ylabel()


def test_one_seed_gets_bars_and_several_a_band():
    one = plots.desired_vs_achieved({"a": [evaluation([5, 55, 80])]}).axes[0]
    several = plots.desired_vs_achieved({"a": [evaluation([5, 55, 80]), evaluation([15, 45, 90])]}).axes[0]
    assert [len(one.containers), len(several.containers)] == [1, 0]
    (band,) = several.collections
    vertices = band.get_paths()[0].vertices
    assert {5.0, 15.0, 45.0, 55.0, 80.0, 90.0} <= set(vertices[:, 1].tolist())
    np.testing.assert_allclose(lines(several)["a"].get_ydata(), [10, 50, 85])


def test_seeds_at_one_target_get_a_bar():
    axes = plots.desired_vs_achieved({"a": [evaluation([5], [10]), evaluation([15], [10])]}).axes[0]
    (bar,) = axes.containers
    (segments,) = [each for each in bar.lines[2][0].get_segments()]
    np.testing.assert_allclose(sorted(segments[:, 1]), [5, 15])


def test_labels_differ_in_color_and_marker_and_seeds_of_other_targets_are_kept():
    results = {
        "DT": [evaluation([5, 55, 80]), evaluation([1, 2, 3], targets=(0.0, 10.0, 20.0))],
        "RADT": [evaluation([0, 50, 100])],
    }
    axes = plots.desired_vs_achieved(results).axes[0]
    looks = [(to_hex(c.lines[0].get_color()), c.lines[0].get_marker()) for c in axes.containers]
    assert len(looks) == 3 and looks[0] == looks[1]
    assert looks[0][0] != looks[2][0] and looks[0][1] != looks[2][1]
    assert [text.get_text() for text in axes.get_legend().get_texts()].count("DT") == 1


def test_many_labels_are_told_apart_and_all_of_them_are_named():
    results = {f"_{number}": [evaluation([number, 50, 80])] for number in range(10)}
    axes = plots.desired_vs_achieved(results).axes[0]
    looks = {(to_hex(c.lines[0].get_color()), c.lines[0].get_marker()) for c in axes.containers}
    assert len(looks) == 10
    names = {text.get_text().strip() for text in axes.get_legend().get_texts()}
    assert set(results) < names


def records():
    return [
        {
            "gradient_steps": step,
            "loss": 100.0 / step,
            "lr": 1e-4,
            "evaluation": evaluation([5, 55, step]).to_json() if step % 200 == 0 else None,
        }
        for step in range(100, 1001, 100)
    ]


def test_learning_curve_has_a_panel_for_each_thing_recorded():
    figure = learning_curve({"RADT": records()}, data_max=2000.0)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == [
        "Training loss",
        "Learning rate",
        "Alignment error",
        "Return at the highest target",
    ]
    line = lines(panels["Return at the highest target"])["RADT"]
    np.testing.assert_allclose(line.get_xdata(), [200, 400, 600, 800, 1000])
    np.testing.assert_allclose(line.get_ydata(), [200, 400, 600, 800, 1000])


def test_learning_curve_survives_what_a_broken_run_recorded():
    broken = [
        {},
        {"gradient_steps": 1, "loss": float("nan"), "evaluation": "no"},
        {"gradient_steps": 2, "loss": -1.0, "lr": "high", "evaluation": {"targets": []}},
        {
            "gradient_steps": 3,
            "loss": True,
            "evaluation": {"targets": [{"target": 1}], "alignment_error": None},
        },
    ]
    figure = learning_curve({"a": broken})
    (axes,) = [axes for axes in figure.axes if axes.get_visible()]
    np.testing.assert_array_equal(lines(axes)["a"].get_ydata(), [-1.0])
    assert learning_curve({"a": []})


def test_learning_curve_marks_where_online_finetuning_starts():
    phases = [
        {"gradient_steps": s, "loss": 1.0, "phase": "pretrain" if s < 3 else "online"} for s in range(5)
    ]
    axes = learning_curve({"a": phases}).axes[0]
    np.testing.assert_array_equal(lines(axes)["online finetuning starts"].get_xdata(), [2, 2])


def test_histogram_counts_every_episode_and_marks_the_targets():
    returns = np.random.default_rng(0).normal(size=300)
    axes = plots.return_histogram(returns, targets=[-1.0, 1.0]).axes[0]
    assert sum(patch.get_height() for patch in axes.patches) == 300
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [-1.0, 1.0]


@pytest.mark.parametrize("value", [0.0, -7.0])
def test_a_single_target_is_still_a_picture(tmp_path, value):
    save_png(plots.desired_vs_achieved({"a": [evaluation([1], targets=(value,))]}), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5_000
