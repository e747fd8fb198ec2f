"""When a critic's values have exploded, and when rewards are only rare or small."""

from __future__ import annotations

from typing import Any

import pytest

from rayrl_dt.critics.guard import check_values
from rayrl_dt.errors import TrainingDiverged


def look(mean: float, **chosen: Any) -> None:
    settings = {"largest_reward": 2.0, "gamma": 0.99, "step": 7, "remedy": "lower critic_lr"}
    check_values(mean, **{**settings, **chosen})


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ten_times_what_rewards_can_add_up_to_is_too_much(sign: float) -> None:
    look(sign * 1_999.0)
    with pytest.raises(
        TrainingDiverged, match=r"2e\+03 at gradient step 7, and rewards up to 2 .*lower critic_lr$"
    ):
        look(sign * 2_001.0)


@pytest.mark.parametrize("largest", [0.0, 1e-6])
def test_new_weights_have_values_whatever_the_rewards(largest: float) -> None:
    look(9.0, largest_reward=largest)
    with pytest.raises(TrainingDiverged, match="exploded"):
        look(11.0, largest_reward=largest)


@pytest.mark.parametrize("mean", [float("nan"), float("inf")])
def test_what_is_no_number_has_exploded(mean: float) -> None:
    with pytest.raises(TrainingDiverged, match="exploded"):
        look(mean)


def test_without_discount_there_is_a_bound_too() -> None:
    look(1e6, gamma=1.0)
    with pytest.raises(TrainingDiverged, match="exploded"):
        look(1e9, gamma=1.0)
