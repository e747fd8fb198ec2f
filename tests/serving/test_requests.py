"""What requests may hold; everything else is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import TINY, build_model
from image_data import image_store

from rayrl_dt.data.own import store_of_episodes
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.serving.requests import Refused, observation_of, optional_number, read_body, seed_of, step_of
from rayrl_dt.types import RawEpisode


@pytest.fixture
def spec(make_store: Callable[..., TrajectoryStore]) -> PolicySpec:
    return build_model(make_store()).spec


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"observation": NaN}', "NaN is no number of JSON"),
        (b'{"reward": -Infinity}', "-Infinity is no number"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"[1]", "is a JSON list"),
        (b'{"obsrvation": 1}', "Did you mean 'observation'"),
        (b'{"__class__": "os.system"}', "there is no key '__class__'"),
    ],
)
def test_a_body_is_an_object_of_known_keys(body: bytes, reason: str) -> None:
    with pytest.raises(Refused, match="(?s)" + reason) as refused:
        read_body(body, ("observation", "reward"))
    assert refused.value.status == 400 and len(str(refused.value).splitlines()) == 1


def test_an_empty_body_is_an_empty_object() -> None:
    assert read_body(b" \n", ()) == {} and read_body(b'{"a": null}', ("a",)) == {"a": None}


@pytest.mark.parametrize("value", ["3", True, [1], {}, 10**400, float("inf"), -1e300, 4 * 10**38])
def test_a_number_is_finite(value: Any) -> None:
    with pytest.raises(Refused, match=r"reward is .*; it must be a finite number"):
        optional_number({"reward": value}, "reward")


def test_a_number_may_be_left_out() -> None:
    assert optional_number({}, "reward") is None and optional_number({"reward": None}, "reward") is None
    assert optional_number({"reward": 3}, "reward") == 3.0


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, "0", None])
def test_a_seed_is_a_whole_number(value: Any) -> None:
    with pytest.raises(Refused, match="seed is"):
        seed_of({"seed": value})
    assert seed_of({}) == 0 and seed_of({"seed": 5}) == 5


def test_a_step_is_a_whole_number_or_left_out() -> None:
    with pytest.raises(Refused, match="step is -1; it must be a whole number from 0"):
        step_of({"step": -1})
    assert step_of({}) is None and step_of({"step": None}) is None and step_of({"step": 0}) == 0


@pytest.mark.parametrize(
    "observation",
    [
        None,
        [],
        [1, 2],
        [[1, 2, 3]],
        [1, 2, "3"],
        [1, 2, None],
        [1, 2, [3]],
        [1, 2, 1e39],
        [1, 2, 10**400],
        {"a": 1},
        "abc",
        [{}, {}, {}],
    ],
)
def test_observations_that_do_not_fit_are_refused(spec: PolicySpec, observation: Any) -> None:
    with pytest.raises(Refused, match=r"^observation: ") as refused:
        observation_of(spec, {"observation": observation})
    assert refused.value.status == 400 and len(str(refused.value).splitlines()) == 1


def test_an_observation_cannot_be_left_out(spec: PolicySpec) -> None:
    with pytest.raises(Refused, match="the body has no observation"):
        observation_of(spec, {"reward": 1.0})


def test_an_observation_is_what_json_makes_of_it(spec: PolicySpec) -> None:
    read = observation_of(spec, {"observation": [0.1, -2, 3]})
    np.testing.assert_array_equal(read, np.array([0.1, -2, 3], np.float32))
    assert read.dtype == np.float32


def test_pictures_are_bytes() -> None:
    spec = PolicySpec.from_store(ModelConfig.from_dict(TINY), image_store(), return_scale=1.0)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40))
    read = observation_of(spec, {"observation": picture.tolist()})
    np.testing.assert_array_equal(read, picture)
    assert read.dtype == np.uint8
    for bad in (256, -1, 0.5):
        with pytest.raises(Refused, match="whole numbers from 0 to 255"):
            observation_of(spec, {"observation": [[bad, *row[1:]] for row in picture.tolist()]})


def test_observations_of_many_parts_come_as_objects_and_lists() -> None:
    space = gym.spaces.Dict(
        camera=gym.spaces.Box(0, 255, (40, 40), np.uint8),
        arm=gym.spaces.Tuple((gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3))),
        words=gym.spaces.Text(5),
    )
    space.seed(0)
    env = gym.Env[Any, Any]()
    env.observation_space, env.action_space = space, gym.spaces.Discrete(2)
    observations = [space.sample() for _ in range(4)]
    episode = RawEpisode(observations, np.array([0, 1, 0]), np.ones(3), terminated=True)
    spec = build_model(store_of_episodes([episode], env)).spec
    sample = space.sample()
    sent = json.loads(json.dumps(sample, default=lambda value: value.tolist()))
    np.testing.assert_array_equal(observation_of(spec, {"observation": sent}), spec.flattening(sample))
    del sent["words"]
    np.testing.assert_array_equal(observation_of(spec, {"observation": sent}), spec.flattening(sample))
    for broken in ({**sent, "arm": sent["arm"][:1]}, {**sent, "arm": [[0, 0], 3]}, {**sent, "camera": 1}, {}):
        with pytest.raises(Refused, match=r"^observation: "):
            observation_of(spec, {"observation": broken})
