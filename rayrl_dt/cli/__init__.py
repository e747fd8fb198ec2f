"""The command line `rayrl-dt`: thin over the Python API."""

from __future__ import annotations

from rayrl_dt.cli.main import app, main

__all__ = ["app", "main"]
