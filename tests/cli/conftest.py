"""Commands as a user gives them, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from rayrl_dt.cli import main
from rayrl_dt.cli.console import console


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that runs a command and gives (exit status, stdout, stderr)."""
    monkeypatch.setattr(console, "width", 200)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayrl-dt", *arguments])
        try:
            main()
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
