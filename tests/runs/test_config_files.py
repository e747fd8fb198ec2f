"""Config files as users may write them: read, overridden, or refused in one line."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.errors import UserError
from rayrl_dt.runs.config_files import apply_overrides, build_config, read_yaml

SOME = settings(max_examples=60, deadline=None)
NAMES = st.text("abcdefgh_", min_size=1, max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FILES = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=3), max_size=3)


def read(content: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(content, newline="", encoding="utf-8")
        return read_yaml(file)


@SOME
@given(values=FILES)
def test_what_is_written_is_read(values: dict[str, Any]) -> None:
    assert read(yaml.safe_dump(values)) == values


@SOME
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.text("{}[]:,&*!|>-\"'%@ \n\tab01.~", max_size=30)
    | st.sampled_from(["a: 2001-99-99", "a: 0b2", "? [a]\n: b", "&a {b: *a}", "a: !!python/name:os.system"])
)
def test_any_text_is_a_file_or_is_refused(text: str) -> None:
    try:
        assert isinstance(read(text), dict)
    except UserError as error:
        assert "config.yaml" in str(error) and "\n" not in str(error)


@SOME
@given(
    values=FILES,
    path=st.lists(NAMES, min_size=1, max_size=4),
    value=SCALARS | st.lists(st.integers(), max_size=3),
)
def test_an_override_sets_its_key_and_nothing_else(
    values: dict[str, Any], path: list[str], value: Any
) -> None:
    before = copy.deepcopy(values)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    try:
        found = apply_overrides(values, [f"{'.'.join(path)}={text}"])
    except UserError as error:
        # Its section is a value.
        node: Any = values
        for key in path[:-1]:
            node = node.get(key, {})
            if not isinstance(node, dict):
                break
        assert not isinstance(node, dict) and "not a section" in str(error)
        return
    assert values == before, "the file's own values stay"
    node = found
    for key in path[:-1]:
        node = node[key]
    wanted = value
    if isinstance(value, str):  # numbers are numbers, however they are written
        with contextlib.suppress(ValueError):
            wanted = float(value)
    assert node[path[-1]] == wanted or wanted != wanted
    # Everything else is as it was.
    node.pop(path[-1])
    expected = copy.deepcopy(before)
    other: Any = expected
    for key in path[:-1]:
        other = other.setdefault(key, {})
    other.pop(path[-1], None)
    assert found == expected


@SOME
@given(
    values=FILES, overrides=st.lists(st.text(max_size=20) | st.text("ab.= :[{1e-", max_size=12), max_size=3)
)
def test_any_override_is_read_or_refused(values: dict[str, Any], overrides: list[str]) -> None:
    try:
        assert isinstance(apply_overrides(values, overrides), dict)
    except UserError as error:
        assert "--set" in str(error)


@SOME
@given(first=SCALARS, second=st.integers())
def test_the_last_override_counts(first: Any, second: int) -> None:
    text = yaml.safe_dump(first).removesuffix("...\n").strip()
    found = apply_overrides({}, [f"training.lr={text}", f"training.lr={second}"])
    assert found == {"training": {"lr": second}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainin": {}}, "unknown section 'trainin'. Did you mean 'training'"),
        ({"training": {"learning_rate": 1}}, "training has no key 'learning_rate'"),
        ({"training": {"gradient_step": 1}}, "Did you mean 'gradient_steps'"),
        ({"algorithm": "DTT"}, "Did you mean 'DT'"),
        ({"training": {"lr": {"loguniform": [1e-5, 1e-3]}}}, "training.lr is a search space"),
        ({"training": 3}, "must be a mapping"),
        ({"offline_data": {}}, "no data set is given"),
        (
            {"algorithm": "OnlineDT", "training": {"gradient_steps": 9}},
            r"gradient_steps is 9, .*online.pretrain_steps and online.env_steps",
        ),
    ],
)
def test_config_files_are_checked(change: dict[str, Any], message: str) -> None:
    config = {"algorithm": "DT", "offline_data": {"dataset": "recipe:pendulum-mixed"}, **change}
    with pytest.raises(UserError, match=message):
        build_config(config)


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must hold a mapping"):
        read_yaml(tmp_path / "list.yaml")
