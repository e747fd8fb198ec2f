"""Storage: a folder that some node cannot see is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrl_dt.errors import UserError
from rayrl_dt.tuning.storage import complain


def test_a_folder_that_all_nodes_share_is_let_through() -> None:
    complain(Path("/shared"), {"head": None, "worker": None})


def test_nodes_that_do_not_share_it_are_named() -> None:
    answers = {"head": None, "worker 3f": "No such file or directory: /home/out", "worker 9a": None}
    with pytest.raises(
        UserError, match=r"not shared by all nodes \(worker 3f: No such file.*choose an --out"
    ):
        complain(Path("/home/out"), answers)
