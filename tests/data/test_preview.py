from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.data import preview


def test_continuous_statistics(make_store: Any) -> None:
    store = make_store(lengths=(3, 8, 5))
    store.actions[0] = (1.0, -1.0)
    numbers = preview.statistics(store)
    json.dumps(numbers)
    assert numbers["episodes"] == 3 and numbers["steps"] == 16
    assert numbers["returns"]["mean"] == pytest.approx(store.episode_returns.mean())
    assert numbers["lengths"]["p50"] == 5 and numbers["terminated_fraction"] == pytest.approx(2 / 3)
    first, second = numbers["actions"]["dimensions"]
    assert first["max"] == 1 and second["min"] == -1 and first["low"] == -1
    assert first["mean"] == pytest.approx(store.actions[:, 0].mean(), rel=1e-5)
    assert second["std"] == pytest.approx(store.actions[:, 1].std(), rel=1e-5)
    assert numbers["actions"]["at_bounds"] == pytest.approx(2 / 32)
    assert numbers["reference"] is None and numbers["reference_note"]


def test_statistics_of_a_view_ignore_the_rest(make_store: Any) -> None:
    store = make_store(lengths=(3, 8, 5))
    numbers = preview.statistics(store.select([2, 0]))
    assert numbers["steps"] == 8
    mine = np.concatenate([store.trajectory(0).actions, store.trajectory(2).actions])
    assert numbers["actions"]["dimensions"][0]["mean"] == pytest.approx(mine[:, 0].mean(), rel=1e-5)


def test_discrete_statistics(make_store: Any) -> None:
    store = make_store(actions=3, first_action=5)
    counts = preview.statistics(store)["actions"]["counts"]
    assert list(counts) == ["5", "6", "7"] and sum(counts.values()) == store.num_steps
    assert counts["6"] == int((store.actions == 6).sum())


def test_statistics_of_several_choices(make_store: Any) -> None:
    actions = np.random.default_rng(0).integers([5, 0], [8, 2], size=(70, 2))
    store = make_store(lengths=(30, 40))
    space = gym.spaces.MultiDiscrete([3, 2], start=[5, 0])
    store = replace(store, actions=actions, info=replace(store.info, action_space=space))
    statistics = preview.statistics(store)["actions"]
    assert statistics["kind"] == "multi-discrete"
    assert [list(counts) for counts in statistics["choices"]] == [["5", "6", "7"], ["0", "1"]]
    assert statistics["choices"][1]["1"] == int(actions[:, 1].sum())
