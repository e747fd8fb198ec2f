"""The pages for people say what is so: their paths, names, commands and options exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from rayrl_dt.cli import app
from rayrl_dt.cli.config_reference import Key, reference
from rayrl_dt.runs.config_files import ALGORITHMS, SECTIONS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rayrl_dt"
PAGES = (
    "README.md",
    "rayrl_dt/README.md",
    "cluster/README.md",
    "tune_configs/README.md",
    "tests/benchmarks/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (PACKAGE / "docs").glob("*.md")),
)
# `data/store.py`, `policy/acting/`, `types.py Window`; not NAME placeholders, nor what a run writes.
PLACE = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+)*(?:\.py|\.yaml|/))(?: (?P<name>[A-Za-z_]\w*))?")


def places(page: str) -> Iterator[re.Match[str]]:
    """Every path, with or without a name in it, that a page has in backticks."""
    for quoted in re.findall(r"`([^`\n]+)`", (ROOT / page).read_text()):
        found = PLACE.fullmatch(quoted)
        if found is not None:
            yield found


def names_in(file: Path) -> set[str]:
    """What a module defines at its top level."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_map_is_the_package() -> None:
    rooms = {found["path"].rstrip("/") for found in places("rayrl_dt/README.md")}
    there = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    files = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert there | files <= rooms


def test_what_the_inner_page_names_is_there() -> None:
    for found in places("rayrl_dt/README.md"):
        path, name = found["path"], found["name"]
        place = next((base / path for base in (PACKAGE, ROOT) if (base / path).exists()), None)
        assert place is not None, f"there is no {path}"
        if name is not None:
            assert name in names_in(place), f"{path} has no {name}"


def test_the_tests_that_the_inner_page_names_are_there() -> None:
    named = re.findall(r"tests/[\w./]+", (PACKAGE / "README.md").read_text())
    assert named and [name for name in named if not (ROOT / name.rstrip(".")).exists()] == []


def command_lines() -> list[str]:
    """Every line of a shell block, and every command in backticks, that calls the program."""
    lines = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        shell = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        quoted = re.findall(r"`(rayrl-dt [^`]+)`", text)
        lines += [line.split(" #")[0].strip() for line in (*shell, *quoted) if line.startswith("rayrl-dt ")]
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("line", command_lines())
def test_commands_have_the_options_that_the_pages_give_them(line: str) -> None:
    words = shlex.split(line.replace("[", "").replace("]", ""))[1:]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if words[0] in ("--version", "..."):
            return
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options - {"--help"} <= known


def test_the_configs_that_the_pages_name_are_there() -> None:
    for page in PAGES:
        for file in re.findall(r"tune_configs/[\w]+\.yaml", (ROOT / page).read_text()):
            assert (ROOT / file).exists(), f"{page} names {file}"


def test_the_settings_that_the_pages_name_are_there() -> None:
    def names(keys: Sequence[Key], above: str) -> Iterator[str]:
        for key in keys:
            yield f"{above}.{key.name}"
            yield from names(key.inner, f"{above}.{key.name}")

    sections = [section for algorithm in ALGORITHMS for section in reference(algorithm)]
    known = {name for section in sections for name in names(section.keys, section.name)}
    setting = re.compile(rf"(?<![\w./])(?:{'|'.join(SECTIONS)})(?:\.[a-z]\w+)+")
    for page in PAGES:
        quoted = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
        named = {found for text in quoted for found in setting.findall(text)}
        assert named <= known, f"{page} names {sorted(named - known)}"
