"""Actions of any space as arrays, and back."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rayrl_dt.envs.actions import ActionLayout
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.errors import UserError

SPACES: dict[str, tuple[gym.Space[Any], gym.Space[Any]]] = {
    "vector": (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (3,))),
    "number": (spaces.Box(-1, 2, ()), spaces.Box(-1, 2, (1,))),
    "matrix": (
        spaces.Box(-1, np.inf, (2, 3), np.float64),
        spaces.Box(-1, np.inf, (6,), np.float64),
    ),
    "discrete": (spaces.Discrete(3, start=2), spaces.Discrete(3, start=2)),
    "several": (spaces.MultiDiscrete([3, 2]), spaces.MultiDiscrete([3, 2])),
    "several bytes": (spaces.MultiDiscrete([3, 2], dtype=np.uint8), spaces.MultiDiscrete([3, 2])),
    "table": (
        spaces.MultiDiscrete([[3, 2], [4, 5]], start=[[1, 0], [2, -1]]),
        spaces.MultiDiscrete([3, 2, 4, 5], start=[1, 0, 2, -1]),
    ),
    "buttons": (spaces.MultiBinary(4), spaces.MultiDiscrete([2, 2, 2, 2])),
    "grid of buttons": (spaces.MultiBinary((2, 2)), spaces.MultiDiscrete([2, 2, 2, 2])),
    "whole numbers": (
        spaces.Box(np.array([-2, 0]), np.array([2, 7]), dtype=np.int32),
        spaces.MultiDiscrete([5, 8], start=[-2, 0]),
    ),
}


class _Asked(gym.Env[Any, Any]):
    """Keeps the action that it was given."""

    observation_space = spaces.Box(-1, 1, (1,))

    def __init__(self, space: gym.Space[Any]) -> None:
        self.action_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.taken = action
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("name", SPACES)
def test_actions_go_there_and_back(name: str) -> None:
    space, flat = SPACES[name]
    layout = ActionLayout(space)
    assert layout.flat == flat
    space.seed(3)
    actions = [space.sample() for _ in range(5)]
    laid_out = layout.episode(np.stack(actions))
    assert laid_out.shape == (5, *(flat.shape or ()))
    env = _Asked(space)
    plain = PlainEnv(env, None)
    assert plain.action_space == flat
    plain.reset()
    for action, array in zip(actions, laid_out, strict=True):
        plain.step(array if flat.shape else int(array))
        np.testing.assert_allclose(env.taken, action, rtol=1e-6)
    if laid_out.dtype == np.int64:
        with pytest.raises(UserError, match="actions are not whole numbers from"):
            layout.episode(np.stack(actions) + 100)
        # As tables keep them.
        np.testing.assert_array_equal(layout.episode(np.stack(actions).astype(np.float64)), laid_out)
        for bad in (0.5, np.nan, np.inf):
            with pytest.raises(UserError, match="actions are not whole numbers from"):
                layout.episode(np.stack(actions) + bad)
    with pytest.raises(UserError, match="the space says"):
        layout.episode(np.zeros((5, 7, 2, 1)))


def test_other_ways_to_write_a_choice_are_taken_or_named() -> None:
    layout = ActionLayout(spaces.Discrete(2))
    assert layout.episode([True, False]).tolist() == [1, 0]
    with pytest.raises(
        UserError, match=r"shape \(2,\), .*; give the index of each one-hot vector, its argmax"
    ):
        layout.episode(np.eye(2))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,))]),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Box(0, 100_000, (2,), np.int64),
        spaces.Text(3),
    ],
)
def test_what_cannot_be_laid_out_is_named(space: gym.Space[Any]) -> None:
    with pytest.raises(UserError, match=r"action space .* is not supported; allowed are Discrete"):
        _ = ActionLayout(space).flat
    assert PlainEnv(_Asked(space), None).action_space == space
