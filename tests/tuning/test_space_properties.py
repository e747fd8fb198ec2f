"""Search spaces: a file and back, and every value that is drawn lies in its space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.errors import UserError
from rayrl_dt.runs.config_files import SECTIONS, search_spaces
from rayrl_dt.tuning.space import Space, find_spaces, grid_points, replaced, value_at

SOME = settings(max_examples=50, deadline=None)
NAMES = st.text("abcdefgh_", min_size=1, max_size=6)
PATHS = st.tuples(st.sampled_from(SECTIONS), NAMES).map(".".join)
SCALARS = st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.sampled_from(["constant", "cosine"])
RANGES = st.tuples(st.floats(1e-4, 10), st.floats(11, 1e4)).map(list)
LEAVES: st.SearchStrategy[dict[str, list[Any]]] = st.one_of(
    st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"grid": values}),
    st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"choice": values}),
    RANGES.map(lambda values: {"uniform": values}),
    RANGES.map(lambda values: {"loguniform": values}),
    st.tuples(st.integers(-9, 9), st.integers(10, 99)).map(lambda values: {"randint": list(values)}),
    st.tuples(st.integers(-9, 9), st.integers(10, 99), st.sampled_from([0.25, 1, 5])).map(
        lambda values: {"quniform": [values[0] * values[2], values[1] * values[2], values[2]]}
    ),
)
FILES = st.dictionaries(PATHS, LEAVES, min_size=1, max_size=4)


@SOME
@given(leaves=FILES, fixed=st.dictionaries(PATHS, SCALARS, max_size=4))
def test_a_file_holds_its_spaces(leaves: dict[str, Any], fixed: dict[str, Any]) -> None:
    values = replaced({"algorithm": "DT"}, {**fixed, **leaves})
    back = yaml.safe_load(yaml.safe_dump(values))
    assert back == values
    spaces = {space.path: space for space in find_spaces(back)}
    assert sorted(spaces) == sorted(leaves) == sorted(search_spaces(back))
    for path, leaf in leaves.items():
        ((kind, options),) = leaf.items()
        assert (spaces[path].kind, list(spaces[path].options)) == (kind, options)
    # Any corner of it is a file without spaces, in which all else is as it was.
    corner = replaced(back, {path: space.edges[0] for path, space in spaces.items()})
    assert find_spaces(corner) == () and back == values
    for path, value in fixed.items():
        assert path in leaves or value_at(corner, path) == value


@SOME
@given(leaves=FILES)
def test_every_combination_comes_once(leaves: dict[str, Any]) -> None:
    values = replaced({"algorithm": "DT"}, leaves)
    listed = {path: next(iter(leaf.values())) for path, leaf in leaves.items()}
    if any(next(iter(leaf)) not in ("grid", "choice") for leaf in leaves.values()):
        with pytest.raises(UserError, match="list them"):
            grid_points(values)
        return
    points = grid_points(values)
    assert len(points) == math.prod(map(len, listed.values()))
    for path, options in listed.items():
        assert {repr(point[path]) for point in points} == {repr(option) for option in options}
    assert len({repr(point) for point in points}) == math.prod(
        len({repr(option) for option in options}) for options in listed.values()
    )
    for point in points[:3]:
        assert grid_points(replaced(values, point)) == [{}]


@SOME
@given(leaf=LEAVES, seed=st.integers(0, 99), factor=st.floats(-3, 3))
def test_what_is_drawn_lies_inside(leaf: dict[str, list[Any]], seed: int, factor: float) -> None:
    (space,) = find_spaces({"training": {"lr": leaf}})
    domain, random = space.domain(), np.random.RandomState(seed)
    if space.kind == "grid":
        assert domain == {"grid_search": list(space.options)}
        return
    for _ in range(5):
        drawn = domain.sample(random_state=random)
        if space.kind == "choice":
            assert drawn in space.options
            continue
        assert space.edges[0] <= drawn <= space.edges[1]
        assert space.clipped(drawn) == min(max(drawn, space.edges[0]), space.edges[1])
        assert space.edges[0] <= space.clipped(factor * drawn) <= space.edges[1]


@SOME
@given(
    kind=st.sampled_from(["grid", "choice", "uniform", "loguniform", "randint", "quniform"]),
    options=st.lists(SCALARS | st.none() | st.just(float("nan")) | st.just("1e-3"), max_size=4)
    | SCALARS
    | st.none(),
)
def test_any_leaf_is_a_space_or_is_refused(kind: str, options: Any) -> None:
    try:
        (space,) = find_spaces({"training": {"lr": {kind: options}}})
    except UserError as error:
        assert "training.lr" in str(error) and "\n" not in str(error)
        return
    assert isinstance(space, Space) and space.edges
    space.domain()
