"""The pages and the API reference build without a warning, and hold every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rayrl_dt

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocstrings", reason="needs the extra docs")


@pytest.mark.slow
def test_the_site_builds_and_holds_every_public_name(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / ".ci" / "check", "docs", tmp_path / "site"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    pages = {page: page.read_text() for page in (tmp_path / "site" / "api").glob("*/index.html")}
    described = {name for text in pages.values() for name in re.findall(r'id="(rayrl_dt\.[\w.]+)"', text)}
    homes = {f"{home}.{name}" for home, name in rayrl_dt._HOMES.values()}
    assert homes <= described, homes - described
    start = (tmp_path / "site" / "index.html").read_text()
    for page in (ROOT / "rayrl_dt" / "docs").glob("*.md"):
        assert f'href="{page.stem}/"' in start, f"the start page does not lead to {page.name}"
