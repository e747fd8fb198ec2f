"""The picture of a data set, for every kind of action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayrl_dt.reports import data_set


@pytest.mark.parametrize("options", [{}, {"actions": 4}, {"action_dim": 9}, {"lengths": (1,)}], ids=str)
def test_plot(make_store: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    path = data_set.plot(make_store(**options), tmp_path / "new" / "preview.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
