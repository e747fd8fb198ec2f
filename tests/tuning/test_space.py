"""Search spaces: what a leaf of a config file means to Ray Tune, and which leaves are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray import tune

from rayrl_dt.errors import UserError
from rayrl_dt.tuning.space import Space, find_spaces, replaced, value_at


def test_every_kind_becomes_a_domain_of_ray() -> None:
    values = {
        "training": {
            "lr": {"loguniform": ["1e-5", 1e-3]},
            "weight_decay": {"uniform": [0, 1]},
            "warmup_steps": {"randint": [5, 8]},
            "grad_clip": {"quniform": [0.0, 1.0, 0.25]},
        },
        "online": {"alpha": {"choice": ["1e-2", 0.1]}},
        "rl_module": {"model_config": {"context_length": {"grid": [5, 10]}}},
    }
    spaces = {space.path: space for space in find_spaces(values)}
    assert set(spaces) == {
        "training.lr",
        "training.weight_decay",
        "training.warmup_steps",
        "training.grad_clip",
        "online.alpha",
        "rl_module.model_config.context_length",
    }
    random = np.random.RandomState(0)

    def drawn(path: str) -> list[Any]:
        return [spaces[path].domain().sample(random_state=random) for _ in range(100)]

    rates = drawn("training.lr")
    # Log-uniform: half of the draws lie below the geometric mean of the bounds.
    assert all(1e-5 <= rate <= 1e-3 for rate in rates) and 30 < sum(rate < 1e-4 for rate in rates) < 70
    assert min(drawn("training.weight_decay")) < 0.2 and max(drawn("training.weight_decay")) > 0.8
    assert (
        set(drawn("training.warmup_steps")) == {5, 6, 7} == {*range(*spaces["training.warmup_steps"].options)}
    )
    assert set(drawn("training.grad_clip")) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert set(drawn("online.alpha")) == {0.01, 0.1}
    assert spaces["rl_module.model_config.context_length"].domain() == tune.grid_search([5, 10])


def test_the_edges_are_the_extreme_values() -> None:
    assert Space("a.b", "uniform", (0.5, 2.0)).edges == (0.5, 2.0)
    assert Space("a.b", "randint", (1, 4)).edges == (1, 3)
    assert Space("a.b", "choice", ("x", "y", "z")).edges == ("x", "y", "z")


def test_clipping_keeps_a_mutated_value_in_its_space() -> None:
    space = Space("online.alpha", "loguniform", (0.01, 1.0))
    assert [space.clipped(value) for value in (0.001, 0.5, 1.2)] == [0.01, 0.5, 1.0]
    assert Space("online.alpha", "choice", (1, 2)).clipped(7) == 7
    steps = Space("online.updates_per_iteration", "quniform", (60, 240, 60))
    found = [steps.clipped(value) for value in (76.8, 95.0, 400.0, 2)]
    assert found == [60, 120, 240, 60] and all(isinstance(value, int) for value in found)
    assert Space("training.warmup_steps", "randint", (1, 9)).clipped(3.6) == 4


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({"grid": []}, "training.lr is an empty grid"),
        ({"choice": []}, "empty choice"),
        ({"choice": 3}, "a space lists its values"),
        ({"uniform": [1, 1]}, "empty space, 1 is not below 1"),
        ({"uniform": [1e-3]}, r"write \{uniform: \[low, high\]\}"),
        ({"uniform": ["low", 1]}, r"write \{uniform"),
        ({"uniform": [0, ".inf"]}, r"write \{uniform"),
        ({"loguniform": [0, 1]}, "lower bound must be positive"),
        ({"randint": [1, 2.5]}, "whole numbers"),
        ({"quniform": [0, 1]}, r"\[low, high, step\]"),
        ({"quniform": [0, 1, 0]}, "step must be positive"),
        ({"loguniforn": [1e-5, 1e-3]}, "Did you mean 'loguniform'"),
    ],
)
def test_a_wrong_leaf_is_refused(leaf: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_spaces({"training": {"lr": leaf}})


def test_replacing_makes_sections_and_leaves_the_original_alone() -> None:
    values = {"training": {"lr": 1, "nested": {"a": 2}}, "online": None}
    changed = replaced(values, {"training.nested.a": 3, "online.alpha": 4, "debugging.seed": 5})
    assert changed == {
        "training": {"lr": 1, "nested": {"a": 3}},
        "online": {"alpha": 4},
        "debugging": {"seed": 5},
    }
    assert values == {"training": {"lr": 1, "nested": {"a": 2}}, "online": None}
    assert value_at(changed, "training.nested.a") == 3 and value_at(changed, "training.lr.a") is None
