"""A few faults on every run of the tests; `campaign.py` makes any number of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import campaign
from faults.machines import Machines

pytestmark = pytest.mark.ray

BY_DEFAULT = {"replay killed"}
"""The others are among the tests of their own places, or are asked for: two nodes and several starts of processes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[campaign.Place]:
    """A Ray of its own, whatever the tests beside this one have started."""
    folder = tmp_path_factory.mktemp("faults")
    machines = Machines()
    yield campaign.Place(folder, machines, campaign.logged(folder / "data"))
    machines.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(each, marks=[] if each in BY_DEFAULT else pytest.mark.long) for each in campaign.KINDS],
)
def test_a_run_ends_as_if_nothing_had_happened(kind: str, place: campaign.Place) -> None:
    row = campaign.Row()
    campaign.endure(place, kind, 0, row, most=1)
    assert row.ok == row.strikes


def test_what_must_not_be_is_found(tmp_path: Path) -> None:
    """The checks of the campaign, on a folder that a resume has written to twice."""
    lines = ['{"gradient_steps": 4, "env_steps": 0, "done": false}\n'] * 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines))
    run = campaign.Run(tmp_path / "run", {}, None)
    with pytest.raises(campaign.Violation, match=r"records of steps \[4, 4\]"):
        campaign.check(run, "async", None)
