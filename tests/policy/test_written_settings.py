"""Action gradients and sampled actions as a command line or a file may write them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.errors import UserError
from rayrl_dt.policy.action_gradient import RULES, ActionGradient
from rayrl_dt.policy.sampled_actions import SampledActions

SOME = settings(max_examples=60, deadline=None)
SHARES = st.floats(0, 1, exclude_max=True)
GRADIENTS = st.fixed_dictionaries(
    {},
    optional={
        "eta": st.floats(0, 1e6),
        "n": st.integers(0, 10**6),
        "rule": st.sampled_from(RULES),
        "zeta1": SHARES,
        "zeta2": SHARES,
        "epsilon": st.floats(0, 1e6),
        "form": st.sampled_from(["printed", "standard"]),
    },
)
SAMPLES = st.fixed_dictionaries(
    {},
    optional={"n": st.integers(0, 10**6), "noise": st.floats(0, 1e6), "seed": st.integers(0, 2**31)},
)


def written(values: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())


@SOME
@given(values=GRADIENTS.filter(bool))
def test_an_action_gradient_is_read_back(values: dict[str, Any]) -> None:
    wanted = ActionGradient(**values)
    assert ActionGradient.parse(written(values)) == wanted
    assert ActionGradient.parse(written(values).replace(",", " , ").replace("=", " = ")) == wanted
    assert ActionGradient.read(values) == wanted
    assert ActionGradient.read({key: str(value) for key, value in values.items()}) == wanted
    assert ActionGradient.read(json.loads(json.dumps(wanted.to_json()))) == wanted
    assert wanted.idle == (wanted.n == 0 or wanted.eta == 0)


@SOME
@given(values=SAMPLES.filter(bool))
def test_sampled_actions_are_read_back(values: dict[str, Any]) -> None:
    wanted = SampledActions(**values)
    assert SampledActions.parse(written(values)) == SampledActions.from_value(values) == wanted
    assert SampledActions.from_value(json.loads(json.dumps(wanted.to_json()))) == wanted
    assert SampledActions.parse(str(wanted.n)) == SampledActions.from_value(wanted.n)


@SOME
@given(
    text=st.text(max_size=20)
    | st.lists(
        st.tuples(
            st.sampled_from(["eta", "n", "rule", "noise", "seed", "eta ", "N", ""]), st.text(max_size=6)
        ),
        max_size=4,
    ).map(lambda pairs: ",".join(f"{key}={value}" for key, value in pairs))
)
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (ActionGradient.parse, SampledActions.parse):
        try:
            found = parse(text)
        except UserError:
            continue
        assert all(math.isfinite(v) for v in found.to_json().values() if isinstance(v, (int, float)))


@SOME
@given(
    name=st.sampled_from(["eta", "n", "zeta1", "zeta2", "epsilon"]),
    value=st.floats(max_value=-1e-9) | st.sampled_from([math.nan, math.inf, True, None, "x", [1], {}]),
)
def test_what_is_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        ActionGradient.read({name: value})
