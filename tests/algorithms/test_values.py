"""Every key of every section refuses what is no value of its kind: infinities, NaN, numbers for booleans, text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from rayrl_dt import UserError
from rayrl_dt.algorithms import rllib_keys
from rayrl_dt.critics.training import CriticTraining
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.runs.config_files import ALGORITHMS, build_config
from rayrl_dt.settings import Check
from rayrl_dt.tuning.settings import TuneSettings

NO_NUMBERS = (math.inf, -math.inf, math.nan, [math.nan], [{}])
TEXT = {"env", "dataset", "critic_from", "start_from"}
"""Keys that any text is a value of."""


def checks() -> Iterator[tuple[tuple[str, str], Any, Check]]:
    """Yields class, name, default and check of each setting."""
    parts = dict.fromkeys(part for config in ALGORITHMS.values() for part in config.parts)
    for part in (*parts, ModelConfig, TuneSettings, ActionGradient, SampledActions, CriticTraining):
        for each in fields(part):
            yield (part.__name__, f"{part.section}.{each.name}"), each.default, each.metadata["check"]


SETTINGS = {key: (default, check) for key, default, check in checks()}


def refused(check: Check, name: str, value: Any) -> bool:
    try:
        check(name, value)
    except UserError as error:
        message, key = str(error), name.rpartition(".")[2]
        assert "\n" not in message
        assert key in message or key.replace("_", " ") in message or "the targets" in message
        return True
    return False


@pytest.mark.parametrize(("part", "name"), SETTINGS)
def test_a_setting_refuses_what_is_no_value_of_its_kind(part: str, name: str) -> None:
    default, check = SETTINGS[part, name]
    wrong = [*NO_NUMBERS]
    if not isinstance(default, bool):
        wrong.append(True)
    if name.rpartition(".")[2] not in TEXT:
        wrong.append("nope")
    assert [value for value in wrong if not refused(check, name, value)] == []
    if isinstance(default, bool):
        assert all(refused(check, name, value) for value in (0, 1, "true", None))


@pytest.mark.parametrize(
    "name", [f"{section}.{key}" for section, keys in rllib_keys.READ.items() for key in keys]
)
def test_a_key_of_rllibs_refuses_what_is_no_value_of_its_kind(name: str) -> None:
    section, key = name.split(".")
    for value in (*NO_NUMBERS, "nope"):
        with pytest.raises(UserError) as raised:
            build_config({"algorithm": "DT", "offline_data": {"dataset": "recipe:x"}, section: {key: value}})
        assert "\n" not in str(raised.value)
