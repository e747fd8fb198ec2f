"""RLlib's private members are touched in one module, so that the next Ray release breaks one file."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import rayrl_dt

ROOT = Path(rayrl_dt.__file__).parent
HOME = "rllib_internals"
# What RLlib's guide to RLModules has subclasses override.
DOCUMENTED = {"_forward_train", "_forward_inference", "_forward_exploration"}
FILES = [
    path
    for folder in ("algorithms", "benchmarks", "runs", "tuning")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.stem not in (HOME, "__init__")
]


def module_of(path: Path) -> str:
    return ".".join(("rayrl_dt", *path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_private_member_of_an_object_is_read(path: Path) -> None:
    """What an object of ours keeps for itself is no exception; libraries' functions are (`torch._foreach_mul_`)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        owner = ast.unparse(node.value)
        assert owner in ("self", "cls", "torch", "super()"), f"{path.name}:{node.lineno}: {owner}.{node.attr}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if "algorithms" in path.parts], ids=lambda path: path.stem
)
def test_no_private_member_of_rllibs_is_overridden_or_used(path: Path) -> None:
    module = importlib.import_module(module_of(path))
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
    }
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if cls.__module__ != module.__name__:
            continue
        bases = [base for base in cls.__mro__ if base.__module__.startswith("ray.")]
        theirs = {name for base in bases for name in vars(base)}
        # What their constructors and methods assign.
        for base in bases:
            for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(base)))):  # type: ignore[arg-type]
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    theirs.add(node.attr)
        private = {
            name for name in theirs if name.startswith("_") and not name.startswith(("__", "_abc"))
        } - DOCUMENTED
        found = (used | set(vars(cls))) & private
        assert not found, f"{cls.__name__} touches {sorted(found)}; put that in {HOME}"
