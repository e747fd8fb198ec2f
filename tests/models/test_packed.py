"""Observations of a picture and numbers: packed as bytes, read by convolutions and as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, writes_bytes
from torch.nn import functional

from rayrl_dt.data.filters import below_return
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.data.windows import gather
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError
from rayrl_dt.models.encoders import PackedEncoder
from rayrl_dt.types import RawEpisode, Trajectory

SPACE = gym.spaces.Dict(
    {
        "at": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "eye": gym.spaces.Box(0, 255, (36, 40, 3), np.uint8),
        "held": gym.spaces.Discrete(3),
    }
)
STEPS = 7


def episodes() -> list[RawEpisode]:
    rng = np.random.default_rng(0)
    return [
        RawEpisode(
            {
                "at": rng.normal(5, 3, (STEPS + 1, 2)).astype(np.float32),
                "eye": rng.integers(0, 256, (STEPS + 1, 36, 40, 3), np.uint8),
                "held": rng.integers(3, size=STEPS + 1),
            },
            rng.integers(4, size=STEPS),
            rng.normal(size=STEPS).astype(np.float32),
            terminated=True,
        )
        for _ in range(3)
    ]


@pytest.fixture
def store() -> TrajectoryStore:
    """The episodes, written as a Minari data set and read back."""
    minari_io.write(
        "packed/test-v0",
        episodes(),
        observation_space=SPACE,
        action_space=gym.spaces.Discrete(4),
        env_spec=None,
        author="test",
        algorithm_name="random",
        description="test",
    )
    return TrajectoryStore.from_trajectories(*minari_io.read("packed/test-v0"))


@writes_bytes
def test_a_minari_data_set_is_packed_without_loss(store: TrajectoryStore) -> None:
    space = store.info.observation_space
    assert space == Packed(5, (36, 40, 3)) and space != Packed(5, (40, 36, 3))
    assert store.observations.dtype == np.uint8 and store.observations.shape[1:] == (5 * 4 + 36 * 40 * 3,)
    numbers = space.numbers_of(store.observations)  # type: ignore[attr-defined]
    for number, episode in enumerate(episodes()):
        steps = slice(number * STEPS, (number + 1) * STEPS)
        assert np.array_equal(numbers[steps, :2], episode.observations["at"][:-1])
        assert np.array_equal(numbers[steps, 2:].argmax(1), episode.observations["held"][:-1])
        picture = store.observations[steps, 20:].reshape(-1, 36, 40, 3)
        assert np.array_equal(picture, episode.observations["eye"][:-1])


@writes_bytes
def test_features_are_those_of_the_picture_and_the_normalized_numbers(store: TrajectoryStore) -> None:
    model = build_model(store, backbone="dt")
    (encoder,) = (module for module in model.modules() if isinstance(module, PackedEncoder))
    window = gather(store, np.arange(3), np.full(3, 2), 4).to_torch()
    found = model.features(model.to_model_observations(window.observations))
    seen = [each.observations for each in episodes()]
    every = np.concatenate([np.c_[s["at"][:-1], np.eye(3)[s["held"][:-1]]] for s in seen])
    numbers = np.stack([np.c_[s["at"], np.eye(3)[s["held"]]][2:6] for s in seen])
    wanted = torch.tensor((numbers - every.mean(0)) / every.std(0), dtype=torch.float32)
    torch.testing.assert_close(found[..., :5], wanted, rtol=1e-4, atol=1e-4)
    x = torch.tensor(np.stack([s["eye"][2:6] for s in seen])).flatten(0, 1).permute(0, 3, 1, 2) / 255
    for layer in encoder.image.network.layers:
        x = functional.relu(functional.conv2d(x, layer.weight, layer.bias, layer.stride))
    torch.testing.assert_close(found[..., 5:].flatten(0, 1), x.flatten(1), rtol=1e-4, atol=1e-4)


@writes_bytes
def test_numbers_are_normalized_by_the_episodes_that_are_left(store: TrajectoryStore) -> None:
    returns = store.episode_returns
    poor = below_return(store, float(np.sort(returns)[2]))
    kept = np.flatnonzero(returns < returns.max())
    own = np.concatenate([episodes()[number].observations["at"][:-1] for number in kept])
    assert poor.num_episodes == 2
    np.testing.assert_allclose(build_model(poor).spec.normalizer.mean[:2], own.mean(0), rtol=1e-5)


def test_policies_of_earlier_versions_go_on_reading_a_vector() -> None:
    before = Flattening(SPACE, packs=False)
    assert before.flat.shape == (2 + 36 * 40 * 3 + 3,) and before.flat.dtype == np.float32
    values = before({"at": [1.0, 2.0], "eye": np.full((36, 40, 3), 7, np.uint8), "held": 1})
    assert values[:2].tolist() == [1.0, 2.0] and (values[2:-3] == 7).all()
    vectors = [
        Trajectory(before.episode(each.observations), each.actions, each.rewards, True) for each in episodes()
    ]
    info = DatasetInfo("test", before.flat, gym.spaces.Discrete(4), recorded_space=SPACE)
    spec = build_model(TrajectoryStore.from_trajectories(vectors, info)).spec
    assert spec.flattening.flat == before.flat
    assert replace(spec, observation_space=Flattening(SPACE).flat).flattening.flat == Packed(5, (36, 40, 3))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"at": np.array([np.nan, 0], np.float32)}, "NaN or infinite"),
        ({"eye": np.full((36, 40, 3), 0.5)}, r"pictures hold 0.5; .* whole numbers from 0 to 255"),
        ({"eye": np.zeros((40, 36, 3), np.uint8)}, r"of shape \(40, 36, 3\), the space says"),
    ],
)
def test_what_cannot_be_packed_is_refused(change: dict[str, Any], why: str) -> None:
    seen = {"at": np.zeros(2, np.float32), "eye": np.zeros((36, 40, 3), np.uint8), "held": 0}
    with pytest.raises(UserError, match=why):
        Flattening(SPACE)({**seen, **change})


def test_parts_that_are_not_one_picture_among_others_become_a_vector() -> None:
    eye = SPACE["eye"]
    for parts in ({"eye": eye}, {"left": eye, "right": eye, "at": SPACE["at"]}):
        assert Flattening(gym.spaces.Dict(parts)).flat.dtype == np.float32
