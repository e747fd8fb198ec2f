"""A small campaign on every run of the tests; `campaign.py` makes any number of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import campaign

INPUTS = {kind: 42 for kind in campaign.KINDS} | {"run_folder": 6}
"""Of each kind: 510 in all. A report has plots, and takes its time."""
FOUND = {"bundle": (87, 600, 691), "replay": (133,)}
"""Seeds of inputs that once did something else."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[campaign.Materials]:
    """Whole files, and a folder of data sets that stays while the module runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield campaign.Materials(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("kind", campaign.KINDS)
def test_odd_inputs_are_taken_or_refused_in_one_line(
    kind: str, made: campaign.Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "minari_set":
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(made.folder.parent / "minari0"))
    found = {seed: campaign.fault(kind, seed, made) for seed in (*range(INPUTS[kind]), *FOUND.get(kind, ()))}
    assert not {seed: what for seed, what in found.items() if what is not None}
