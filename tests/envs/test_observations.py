"""One flattening for the data, for environments and for a policy that acts on its own."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rayrl_dt import SequencePolicy
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs import RecordedEnv, spaces_json
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_model
from rayrl_dt.evaluation.targets import policy_targets
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.types import Trajectory
from tests.builders import build_model

Box = spaces.Box
SPACES: dict[str, gym.Space[Any]] = {
    "discrete": spaces.Discrete(4, start=2),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(5),
    "matrix": Box(-1, 1, (2, 3), np.float32),
    "grid": Box(0, 9, (7, 7, 3), np.uint8),
    "scalar": Box(-1, 1, (), np.float32),
    "vector": Box(-1, 1, (3,), np.float64),
    "dict": spaces.Dict(OrderedDict(z=Box(-1, 1, (2,)), a=spaces.Discrete(3))),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), Box(-1, 1, (1, 2))]),
    "picture beside numbers": spaces.Dict(
        {"at": Box(-1, 1, (2,)), "eye": Box(0, 255, (36, 40, 3), np.uint8), "held": spaces.Discrete(3)}
    ),
    "grey picture beside numbers": spaces.Tuple([Box(0, 255, (36, 36), np.uint8), Box(-1, 1, (1,))]),
    "text beside numbers": spaces.Dict({"say": spaces.Text(4), "at": Box(-1, 1, (2,))}),
    "list beside numbers": spaces.Tuple([spaces.Sequence(Box(-1, 1, (2,))), Box(-1, 1, (2,))]),
    "graph beside numbers": spaces.Dict(
        {"near": spaces.Graph(Box(-1, 1, (2,)), None), "at": Box(-1, 1, (2,))}
    ),
}


class SpaceEnv(gym.Env[Any, Any]):
    """Observes samples of a space of the table, in order; pays rewards in arrays."""

    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, name: str, reverse: int = 0) -> None:
        self.observation_space = space = SPACES[name]
        if reverse and isinstance(space, spaces.Dict):
            self.observation_space = spaces.Dict(OrderedDict(reversed(space.spaces.items())))
        self.steps = 0

    def _observe(self) -> Any:
        values = sample(self.observation_space, self.steps)
        if isinstance(values, dict):
            # By name, whatever the order of the space's parts.
            return {key: sample(part, self.steps) for key, part in self.observation_space.spaces.items()}  # type: ignore[attr-defined]
        return values

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observe(), np.array([0.5], np.float32), self.steps == 4, False, {}


def sample(space: gym.Space[Any], number: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: sample(part, number) for key, part in space.spaces.items()}
    space.seed(number)
    return space.sample()


def recorded(space: gym.Space[Any]) -> TrajectoryStore:
    """Four steps of `SpaceEnv`, three times."""
    flattening = Flattening(space)
    observations = np.stack([flattening(sample(space, number)) for number in range(5)])
    rng = np.random.default_rng(0)
    episodes = [
        Trajectory(
            observations, rng.uniform(-1, 1, (4, 2)).astype(np.float32), np.full((4, 1), 0.5), terminated=True
        )
        for _ in range(3)
    ]
    info = DatasetInfo("test", flattening.flat, SpaceEnv.action_space, recorded_space=space)
    return TrajectoryStore.from_trajectories(episodes, info)


@pytest.mark.parametrize("name", SPACES)
def test_policies_of_every_space_are_evaluated_and_act(name: str) -> None:
    store = recorded(SPACES[name])
    model = build_model(store)
    spec = PolicySpec.from_json(json.loads(json.dumps(model.spec.to_json(), allow_nan=False)))
    assert spec.flattening.flat == model.spec.flattening.flat
    model.spec = spec
    where = EnvSpec("SpaceEnv-v0", entry_point=f"{__name__}:SpaceEnv", kwargs={"name": name})
    asked = policy_targets(spec, "2.0")
    (episode,) = evaluate_model(model, asked, env=where.to_json(), episodes_per_target=1).episodes
    assert (episode.episode_return, episode.length) == (2.0, 4)

    vector = RecordedEnv.named(f"{__name__}:SpaceEnv", name=name, reverse=1).make_vector(
        2, spaces=(spec.observation_space, spec.action_space), flattening=spec.flattening
    )
    observations, _ = vector.reset(seed=0)
    np.testing.assert_allclose(observations[1], store.observations[0])
    observations, rewards, *_ = vector.step(np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(observations[0], store.observations[1])
    np.testing.assert_array_equal(rewards, [0.5, 0.5])
    vector.close()

    raw, flat = SequencePolicy(model), SequencePolicy(model)
    for policy in (raw, flat):
        policy.reset(2.0)
    for number in range(4):
        reward = None if number == 0 else np.array([0.5])
        ours = raw.act(sample(SPACES[name], number), reward)
        np.testing.assert_array_equal(ours, flat.act(store.observations[number], reward))


def test_pictures_and_vectors_stay_as_they_are() -> None:
    for space in (Box(0, 255, (36, 40, 3), np.uint8), Box(0, 255, (4, 84, 84), np.uint8), Box(-1, 1, (3,))):
        flattening = Flattening(space)
        assert flattening.plain and flattening.flat is space
        np.testing.assert_array_equal(flattening(sample(space, 0)), sample(space, 0))


@pytest.mark.parametrize(
    ("name", "observation", "why"),
    [
        ("vector", np.zeros(4), r"has shape \(4,\), and must have \(3,\); give it as"),
        ("dict", {"z": np.zeros(2)}, "observations do not fit Dict"),
        ("dict", np.zeros(4), r"must have \(5,\)"),
        ("discrete", 9, "outside its 4 values"),
        ("vector", np.array(["a", "b", "c"]), "not numbers"),
        ("vector", {"z": np.zeros(2)}, "not numbers"),
    ],
)
def test_observations_that_do_not_fit_are_refused(name: str, observation: Any, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        Flattening(SPACES[name])(observation)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "space", [spaces.Dict({"say": spaces.Text(4)}), Box(-1, 1, (0,)), spaces.Sequence(Box(-1, 1, (2,)))]
)
def test_a_space_without_numbers_is_refused(space: gym.Space[Any]) -> None:
    with pytest.raises(UserError, match="no part of numbers"):
        Flattening(space).flat  # noqa: B018


def test_lists_stand_for_tuples_and_for_what_is_left_out() -> None:
    pair = Flattening(spaces.Tuple([spaces.Discrete(2), Box(-1, 1, (2,))]))
    for given in ([1, [0.5, -0.5]], (1, np.array([0.5, -0.5])), [0, 1, 0.5, -0.5]):
        np.testing.assert_array_equal(pair(given), [0, 1, 0.5, -0.5])
    with pytest.raises(UserError, match="do not fit Tuple"):
        pair([1])
    ragged = Flattening(spaces.Dict({"near": spaces.Sequence(Box(-1, 1, (2,))), "at": Box(-1, 1, (1,))}))
    np.testing.assert_array_equal(ragged({"near": [[1, 2], [3]], "at": [0.5]}), [0.5])
    with pytest.raises(UserError, match="not numbers"):
        ragged({"near": [], "at": [[1], [2, 3]]})


def test_features_are_called_by_their_place() -> None:
    flattening = Flattening(spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Tuple([Box(-1, 1, (2,))])}))
    assert [flattening.feature(index) for index in (1, 4)] == ["a[1]", "b[0][1]"]
    assert Flattening(Box(-1, 1, (2,))).feature(1) == "feature 1"


@pytest.mark.parametrize(
    "part", [spaces.MultiDiscrete([3, 2], dtype=np.int32), spaces.Discrete(3, dtype=np.int32)]
)
def test_choices_are_read_whatever_type_of_number_they_come_in(part: gym.Space[Any]) -> None:
    space = spaces.Dict(OrderedDict(z=Box(-1, 1, (2,)), a=part))
    kept = Flattening(spaces_json.from_json(spaces_json.to_json(space)))
    assert kept.reads(space) and not kept.reads(spaces.Dict(z=Box(-1, 1, (2,)), a=spaces.Discrete(2)))
