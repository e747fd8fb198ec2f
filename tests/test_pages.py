"""What the tutorial pages say to type is typed, as it stands there, from top to bottom, in one folder."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "rayrl_dt" / "docs"
BLOCK = re.compile(
    r"(?P<before>[^\n]*\n(?:[^\n]+\n)*)?\n```(?P<language>bash|python)\n(?P<text>.*?)```", re.DOTALL
)
FILE = re.compile(r"\(`(\w+\.py)`\)|is `(\w+\.py)`")


def follow(page: str, folder: Path) -> None:
    """Do what a page says: shell blocks run, Python blocks run too, or become the file that is named before them."""
    for name in ("tune_configs", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "RAY_ADDRESS": "local",  # a script would join a Ray that another test has started
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    text = (PAGES / page).read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    try:
        _do(blocks, folder, environment)
    finally:  # a server that a page starts does not outlive a block that fails
        for file in folder.glob("runs/*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)


def _do(blocks: list[re.Match[str]], folder: Path, environment: dict[str, str]) -> None:
    for block in blocks:
        named = FILE.findall(block["before"] or "")
        if block["language"] == "python" and named:
            (folder / next(filter(None, named[-1]))).write_text(block["text"])
            continue
        command = (
            ["bash", "-euc", block["text"]]
            if block["language"] == "bash"
            else [sys.executable, "-c", block["text"]]
        )
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{block['text']}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("page", ["own_environment.md"])
def test_a_page_can_be_followed(page: str, tmp_path: Path) -> None:
    follow(page, tmp_path)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("page", ["export.md", "finetuning.md", "resume.md", "serving.md", "sweeps.md"])
def test_a_longer_page_can_be_followed(page: str, tmp_path: Path) -> None:
    follow(page, tmp_path)
