"""The picture of a data set, for every kind of action."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rayrl_dt.reports import data_set


@pytest.mark.parametrize("options", [{}, {"actions": 4}, {"action_dim": 9}, {"lengths": (1,)}], ids=str)
def test_plot(make_store: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    path = data_set.plot(make_store(**options), tmp_path / "new" / "preview.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_plot_of_several_choices(make_store: Any, tmp_path: Path) -> None:
    store = make_store(lengths=(30,))
    actions = np.random.default_rng(0).integers(3, size=(30, 2))
    info = replace(store.info, action_space=gym.spaces.MultiDiscrete([3, 4]))
    assert (
        data_set.plot(replace(store, actions=actions, info=info), tmp_path / "preview.png").stat().st_size > 0
    )
