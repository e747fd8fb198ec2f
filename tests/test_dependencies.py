"""Which part may import which: dependencies point downwards, and the core knows nothing of Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

import rayrl_dt

ROOT = Path(rayrl_dt.__file__).parent
PACKAGE = "rayrl_dt"

# From the bottom up: a folder, or a file of the root, is a layer, and imports itself and what stands above it here.
LAYERS: tuple[str, ...] = (
    "errors",
    "settings",
    "seeding",
    "versions",
    "precision",
    "devices",
    "cores",
    "types",
    "losses",
    "envs",
    "data",
    "models",
    "critics",
    "policy",
    "objectives",
    "interop",
    "serving",
    "evaluation",
    "reports",
    "diagnosis",
    "experiments",
    "algorithms",
    "runs",
    "doctor",
    "tuning",
    "deployment",
    "benchmarks",
    "cli",
    "__main__",
)
ROOMS_OF_ALGORITHMS = ("rllib_internals", "environments", "module", "runners", "", "online", "baselines")
"""Files and folders within `algorithms`, from the bottom up; "" stands for all other files."""
CORE = frozenset(LAYERS[: LAYERS.index("algorithms")])

# Modules of the core that name Ray code in a string, to be imported when a user asks for it.
NAMED_IN_STRINGS = {
    "data.recipes.registry": "the recipe that trains a behavior policy with RLlib",
}


@dataclass(frozen=True)
class Import:
    """One imported module: who, what, and whether importing the importer runs it."""

    importer: str
    imported: str
    lazy: bool
    line: int


def module_name(path: Path) -> str:
    """`data.store` for `rayrl_dt/data/store.py`; packages by their own name, the root as ''."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def part(module: str) -> str:
    return module.split(".")[0]


def layer(module: str) -> int:
    return LAYERS.index(part(module))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(module: str) -> Iterator[Import]:
    """Every import of a module, at any depth, except those for type checkers only."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, inside, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno} imports relatively"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    inner = child.module == PACKAGE or full.removeprefix(f"{PACKAGE}.") in MODULES
                    yield Import(module, full if inner else str(child.module), inside, child.lineno)
            else:
                yield from visit(child, inside)

    yield from visit(ast.parse(MODULES[module].read_text()), lazy=False)


def own_imports(module: str) -> Iterator[Import]:
    """Imports of modules of this package, named without its prefix."""
    for found in imports(module):
        if found.imported == PACKAGE or found.imported.startswith(f"{PACKAGE}."):
            yield Import(module, found.imported[len(PACKAGE) + 1 :], found.lazy, found.line)


def strings(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_module_has_a_layer() -> None:
    assert sorted({part(module) for module in MODULES if module}) == sorted(LAYERS)


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_dependencies_point_downwards(module: str) -> None:
    for found in own_imports(module):
        # A public name of the lazy root package may come from anywhere.
        assert part(found.imported) in LAYERS, f"{module}:{found.line}: import {found.imported} from its home"
        below = part(found.imported) == part(module) or layer(found.imported) < layer(module)
        assert below, f"{module}:{found.line} imports {found.imported}, which does not lie below it"


def test_the_rooms_of_algorithms_point_downwards() -> None:
    folders = {path.parent.name for path in (ROOT / "algorithms").glob("*/__init__.py")}
    assert folders <= set(ROOMS_OF_ALGORITHMS)

    def room(module: str) -> int:
        name = [*module.split("."), ""][1]
        return ROOMS_OF_ALGORITHMS.index(name if name in ROOMS_OF_ALGORITHMS else "")

    for module in (module for module in MODULES if part(module) == "algorithms"):
        for found in own_imports(module):
            if part(found.imported) == "algorithms":
                assert room(found.imported) <= room(module), f"{module}:{found.line} imports {found.imported}"


def test_what_names_ray_is_there() -> None:
    assert all(module in MODULES for module in NAMED_IN_STRINGS)


def test_there_is_no_import_cycle() -> None:
    graph = {
        module: {
            found.imported for found in own_imports(module) if not found.lazy and found.imported != module
        }
        for module in MODULES
    }
    TopologicalSorter(graph).prepare()


def test_the_root_package_is_lazy() -> None:
    assert not [found for found in imports("") if found.imported.startswith(PACKAGE)]


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in CORE])
def test_the_core_does_not_import_ray(module: str) -> None:
    for found in imports(module):
        assert part(found.imported) != "ray", f"{module}:{found.line} imports {found.imported}"
    named = [text for text in strings(module) if text.startswith(("ray.", f"{PACKAGE}.algorithms", "ray:"))]
    assert not named or module in NAMED_IN_STRINGS, f"{module} names {named}"


def test_importing_the_core_does_not_load_ray() -> None:
    core = sorted(f"{PACKAGE}.{module}" for module in MODULES if part(module) in CORE)
    code = f"""
import importlib, sys
import {PACKAGE}
import {PACKAGE}.serving.policy
from {PACKAGE} import SequencePolicy, UserError, load_dataset
assert "ray" not in sys.modules, "the public names of the core"
assert "transformers" not in sys.modules, "the Hugging Face extra is optional"
for name in {core!r}:
    importlib.import_module(name)
    assert "ray" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_files_and_classes_stay_small() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert median(lengths.values()) <= 120
    assert not {module: length for module, length in lengths.items() if length > 350}
    classes = {
        f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert not {name: length for name, length in classes.items() if length > 250}


def test_the_public_names_exist() -> None:
    declared = {
        alias.name
        for node in ast.walk(ast.parse(MODULES[""].read_text()))
        if is_type_checking(node)
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom)
        for alias in inner.names
    }
    homes = {name: home for name, (home, _) in rayrl_dt._HOMES.items()}
    assert len(declared) == len(homes) == len(set(rayrl_dt.__all__)) and set(homes) == set(rayrl_dt.__all__)
    for home in homes.values():
        assert home.removeprefix(f"{PACKAGE}.") in MODULES
    with pytest.raises(AttributeError, match="Dt"):
        rayrl_dt.Dt  # noqa: B018
