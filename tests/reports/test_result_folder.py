"""The folder of a page with figures keeps them from those of other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayrl_dt.errors import UserError
from rayrl_dt.reports.page import result_folder

SETTINGS = {"seed": 3, "rate": 0.1, "runs": ["a", "b"], "dataset": None}


@pytest.mark.parametrize("changed", [{}, {"found": 1.5}])
def test_a_folder_takes_the_result_of_the_same_settings(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = tmp_path / "new" / "page"
    assert result_folder(folder, SETTINGS) == folder and folder.is_dir()
    (folder / "result.json").write_text(json.dumps({**SETTINGS, **changed}))
    result_folder(folder, SETTINGS)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (json.dumps({**SETTINGS, "seed": 4}), "a result with seed 4 and not 3; choose another --out"),
        (json.dumps({**SETTINGS, "runs": ["a"]}), r"runs \['a'\] and not \['a', 'b'\]"),
        ("{}", "seed None and not 3"),
        ("[]", "cannot be read; choose another --out"),
        ('{"seed": ', "cannot be read"),
    ],
)
def test_another_one_is_kept(tmp_path: Path, there: str, message: str) -> None:
    (tmp_path / "result.json").write_text(there)
    with pytest.raises(UserError, match=message):
        result_folder(tmp_path, SETTINGS)
