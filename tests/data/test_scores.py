from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.data import scores
from rayrl_dt.data.store import DatasetInfo


def _info(environment: str | None = "Hopper-v5", **metadata: Any) -> DatasetInfo:
    box = gym.spaces.Box(-1, 1, (1,), np.float32)
    if environment is not None:
        metadata["environment"] = environment
    return DatasetInfo("test", box, box, metadata=metadata)


def test_own_scores_apply_to_the_same_environment() -> None:
    info = _info("Pendulum-v1", ref_min_score=-1200.0, ref_max_score=-140.0)
    reference, note = scores.reference_for(info, "Pendulum-v1")
    assert reference is not None and (reference.minimum, reference.maximum) == (-1200.0, -140.0)
    assert note == "the data set test, for Pendulum-v1"


def test_scores_of_another_version_need_asking_for() -> None:
    info = _info("Pendulum-v0", ref_min_score=-1200.0, ref_max_score=-140.0)
    reference, note = scores.reference_for(info, "Pendulum-v1")
    assert reference is None and "made for Pendulum-v0, not for Pendulum-v1" in note
    assert "--across-versions" in note
    reference, note = scores.reference_for(info, "Pendulum-v1", across_versions=True)
    assert reference is not None and "across versions" in note


def test_d4rl_numbers_in_a_newer_data_set_are_recognized() -> None:
    info = _info("Hopper-v5", ref_min_score=-20.272305, ref_max_score=3234.3)
    reference, note = scores.reference_for(info, "Hopper-v5")
    assert reference is None and "made for Hopper-v2, not for Hopper-v5" in note and "D4RL" in note
    reference, _ = scores.reference_for(info, "Hopper-v5", across_versions=True)
    assert reference == scores.D4RL_SCORES["Hopper-v2"]
    reference, _ = scores.reference_for(info, "Hopper-v2")
    assert reference == scores.D4RL_SCORES["Hopper-v2"]


@pytest.mark.parametrize(
    ("made_for", "evaluated", "across_versions", "low"),
    [
        ("Hopper-v2", "Hopper-v2", False, 100.0),  # its own, beside the table's
        ("Hopper-v5", "Hopper-v5", False, 100.0),
        ("Hopper-v5", "Hopper-v2", False, -20.272305),  # the table's are for this version
        ("Hopper-v5", "Hopper-v2", True, -20.272305),
        ("Hopper-v5", "Hopper-v4", True, 100.0),  # both cross versions: its own
        ("Hopper-v5", "Hopper-v4", False, None),
        ("Walker2d-v2", "Hopper-v2", False, -20.272305),  # its own are of another task
    ],
)
def test_who_comes_first(made_for: str, evaluated: str, across_versions: bool, low: float | None) -> None:
    info = _info(made_for, ref_min_score=100.0, ref_max_score=900.0)
    reference, _ = scores.reference_for(info, evaluated, across_versions=across_versions)
    assert (None if reference is None else reference.minimum) == low


def test_table_for_data_without_scores() -> None:
    assert scores.reference_for(_info(), "Walker2d-v2")[0] == scores.D4RL_SCORES["Walker2d-v2"]
    assert scores.reference_for(_info(), "Walker2d-v4")[0] is None
    assert scores.reference_for(_info(), "Walker2d-v4", across_versions=True)[0] is not None


@pytest.mark.parametrize(
    ("info", "env_id", "why"),
    [
        (_info(), "Pong-v0", "no reference scores are known for Pong-v0"),
        (_info(), None, "not known by id"),
        (_info("A-v0", ref_min_score=0.0, ref_max_score=1.0), "B-v0", "for A-v0, not for B-v0"),
        (_info("A-v0", ref_min_score=1.0, ref_max_score=1.0), "A-v0", "no reference scores"),
        (_info("A-v0", ref_min_score=float("nan"), ref_max_score=1.0), "A-v0", "no reference scores"),
        (_info("A-v0", ref_min_score=None, ref_max_score=1.0), "A-v0", "no reference scores"),
        (_info(None, ref_min_score=0.0, ref_max_score=1.0), "A-v0", "no reference scores"),
    ],
)
def test_none_comes_with_the_reason(info: DatasetInfo, env_id: str | None, why: str) -> None:
    for across_versions in (False, True):
        reference, note = scores.reference_for(info, env_id, across_versions=across_versions)
        assert reference is None and why in note


def test_specification_names_the_environment() -> None:
    info = _info(None, ref_min_score=0.0, ref_max_score=10.0)
    info = replace(info, env_spec=gym.spec("CartPole-v1"))
    assert scores.reference_for(info, "CartPole-v1")[0] is not None


def test_normalized() -> None:
    hopper = scores.D4RL_SCORES["Hopper-v2"]
    assert scores.normalized(hopper, hopper.minimum) == 0 and scores.normalized(hopper, hopper.maximum) == 100
    halves = scores.normalized(hopper, np.array([(hopper.minimum + hopper.maximum) / 2]))
    np.testing.assert_allclose(halves, [50.0])


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("Hopper-v5", ("hopper", 5)),
        ("ALE/Pong-v5", ("ale/pong", 5)),
        ("Custom", ("custom", None)),
        ("x-v2-y", ("x-v2-y", None)),
    ],
)
def test_parse_env_id(env_id: str, expected: tuple[str, int | None]) -> None:
    assert scores.parse_env_id(env_id) == expected


def test_games_are_normalized_by_gamers() -> None:
    info = DatasetInfo("games", gym.spaces.Box(0, 255, (84, 84), np.uint8), gym.spaces.Discrete(4))
    reference, clause = scores.reference_for(info, "ALE/Breakout-v5")
    assert reference is not None and "gamer-normalized" in clause
    assert scores.normalized(reference, 76.9) == pytest.approx(267.5, abs=0.1)  # Decision Transformer's table
    assert scores.reference_for(info, "ALE/Freeway-v5")[0] is None
