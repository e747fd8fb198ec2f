"""Stores of a user's own episodes, of any space."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model
from gymnasium import spaces

from rayrl_dt import SequencePolicy
from rayrl_dt.data.info import NOTES
from rayrl_dt.data.own import store_of_episodes
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.data.windows import gather
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.envs.vector import vectorize
from rayrl_dt.errors import UserError
from rayrl_dt.types import RawEpisode, Trajectory

OBSERVATIONS: dict[str, gym.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (3,)),
    "number": spaces.Discrete(4, start=1),
    "parts": spaces.Dict(b=spaces.Box(-1, 1, (2, 2)), a=spaces.Discrete(3), say=spaces.Text(4)),
    "pair": spaces.Tuple([spaces.MultiBinary(2), spaces.Box(-1, 1, (1,))]),
}
ACTIONS: dict[str, gym.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (2,)),
    "matrix": spaces.Box(-1, 1, (2, 2)),
    "buttons": spaces.MultiBinary(3),
    "choice": spaces.Discrete(3, start=-1),
}


class _Env(gym.Env[Any, Any]):
    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.observation_space.seed(seed)
        self.action_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 1.0, False, False, {}


def _episodes(env: _Env, count: int, steps: int = 5) -> list[RawEpisode]:
    episodes = []
    for seed in range(count):
        observations, actions, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(steps):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        episodes.append(RawEpisode(observations, np.array(actions), np.array(rewards), terminated=False))
    return episodes


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_a_store_holds_what_environments_will_give(observations: str, actions: str) -> None:
    env = _Env(OBSERVATIONS[observations], ACTIONS[actions])
    store = store_of_episodes(_episodes(env, 3), env)
    plain = PlainEnv(env, None)
    assert (store.info.observation_space, store.info.action_space) == (
        plain.observation_space,
        plain.action_space,
    )
    for number in range(3):
        episode = store.trajectory(number)
        np.testing.assert_array_equal(episode.observations[0], plain.reset(seed=number)[0])
        for seen, action in zip(episode.observations[1:], episode.actions, strict=True):
            # A sample is drawn as it was when the episode was made.
            env.action_space.sample()
            np.testing.assert_array_equal(
                seen, plain.step(action if action.shape else int(action))[0].astype(seen.dtype)
            )


def test_bad_episodes_are_left_out_and_said() -> None:
    env = _Env(OBSERVATIONS["parts"], ACTIONS["vector"])
    episodes = _episodes(env, 4)
    episodes[2].rewards[1] = np.nan
    store = store_of_episodes(episodes, env)
    assert store.num_episodes == 3
    notes = store.info.metadata[NOTES]
    assert any("1 of 4 episodes are left out" in note for note in notes)
    assert any("say (Text)" in note for note in notes)
    for episode in episodes:
        episode.rewards[0] = np.inf
    with pytest.raises(UserError, match="4 of 4 episodes of own episodes are bad"):
        store_of_episodes(episodes, env)
    with pytest.raises(UserError, match="own episodes holds no episodes"):
        store_of_episodes([], env)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"observations": [], "rewards": [], "actions": np.zeros((0, 2))}, "has no steps"),
        ({"rewards": 5.0}, "N observations, N actions and N rewards"),
        ({"rewards": None}, "rewards are object of shape"),
        (
            {"observations": [np.zeros(1), np.zeros(3)]},
            r"the observation has shape \(N,\), and must have \(N,\)$",
        ),
    ],
)
def test_one_odd_episode_among_good_ones_is_left_out(odd: dict[str, Any], why: str) -> None:
    env = _Env(OBSERVATIONS["vector"], ACTIONS["vector"])
    good, bad = _episodes(env, 2)
    store = store_of_episodes([good, replace(bad, **odd)], env)
    (note,) = store.info.metadata[NOTES]
    assert note.startswith("1 of 2 episodes are left out: 1 x ") and re.search(why, note)


class _Kept(_Env):
    """Gives its observations in another kind of row."""

    def __init__(self, observations: gym.Space[Any], row: Callable[[Any], Any]) -> None:
        super().__init__(observations, spaces.Discrete(2))
        self._row = row

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        row = self._row((1, 2))
        parts = {"at": row, "pair": (1, row)}
        return parts if isinstance(self.observation_space, spaces.Dict) else row, {}


_ROW = spaces.Box(0, 5, (2,), np.int64)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 5, (2,)),
        _ROW,
        spaces.MultiDiscrete([5, 5]),
        spaces.Dict(at=_ROW, pair=spaces.Tuple([spaces.Discrete(2), _ROW])),
    ],
)
def test_rows_are_tuples_lists_or_arrays(space: gym.Space[Any]) -> None:
    wanted = Flattening(space)(_Kept(space, np.array).reset()[0])
    for row in (tuple, list, np.array):
        env = _Kept(space, row)
        seen, _ = env.reset()
        store = store_of_episodes([RawEpisode([seen, seen], np.zeros(1, int), np.ones(1), True)], env)
        for found in (Flattening(space)(seen), PlainEnv(env, None).reset()[0], store.observations[0]):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", [object, ">f4", "f8", "list", "reversed"])
def test_however_numbers_are_kept_they_are_the_same(kind: Any) -> None:
    env = _Env(OBSERVATIONS["vector"], ACTIONS["vector"])
    (plain,) = _episodes(env, 1)

    def kept(values: Any) -> Any:
        array = np.array(values)
        if kind == "list":
            return array.tolist()
        return array[::-1].copy()[::-1] if kind == "reversed" else array.astype(kind)

    odd = RawEpisode(kept(plain.observations), kept(plain.actions), kept(plain.rewards), plain.terminated)
    found, wanted = (store_of_episodes([each], env) for each in (odd, plain))
    for name in ("observations", "actions", "rewards", "returns_to_go"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_choices_kept_as_objects_stay_whole() -> None:
    env = _Env(OBSERVATIONS["number"], ACTIONS["choice"])
    (episode,) = _episodes(env, 1)
    as_objects = replace(episode, actions=episode.actions.astype(object))
    store = store_of_episodes([as_objects], env)
    assert store.actions.dtype == np.int64 and store.actions.tolist() == episode.actions.tolist()
    for bad in (np.array([None] * 5), np.array(["a"] * 5, object)):
        with pytest.raises(UserError, match=r"rewards are .*; they must be one number for each of 5 steps"):
            store_of_episodes([replace(episode, rewards=bad)], env)


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (spaces.Dict(camera=spaces.Box(0, 1, (36, 40, 3)), at=spaces.Box(-1, 1, (2,))), "camera (36"),
        (spaces.Dict(camera=spaces.Box(0, 255, (36, 40, 3), np.uint8), at=spaces.Box(-1, 1, (2,))), None),
        (spaces.Box(0, 1, (36, 40, 3)), "(36"),
        (spaces.Box(0, 255, (36, 40, 3), np.uint8), None),
    ],
)
def test_pictures_that_meet_no_convolutions_are_named(space: gym.Space[Any], name: str | None) -> None:
    env = _Env(space, ACTIONS["vector"])
    notes = store_of_episodes(_episodes(env, 2, steps=2), env).info.metadata.get(NOTES, [])
    assert [
        note.startswith(f"the picture {name}, 40, 3) of observations is read as a row") for note in notes
    ] == ([] if name is None else [True])


class _Pictures(gym.Env[Any, Any]):
    """Gives its pictures as other numbers than bytes."""

    action_space = spaces.Discrete(3)

    def __init__(self, space: gym.Space[Any], convert: Callable[[Any], Any]) -> None:
        self.observation_space, self._convert = space, convert

    def _observe(self) -> Any:
        seen = self.observation_space.sample()
        return {**seen, "eye": self._convert(seen["eye"])} if isinstance(seen, dict) else self._convert(seen)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.observation_space.seed(seed)
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        return self._observe(), 1.0, False, False, {}

    def episode(self, seed: int) -> RawEpisode:
        """Return an episode of five steps."""
        observations = [self.reset(seed=seed)[0], *(self.step(0)[0] for _ in range(5))]
        return RawEpisode(observations, np.arange(5) % 3, np.ones(5), terminated=True)


_EYE = spaces.Box(0, 255, (36, 40, 3), np.uint8)


@pytest.mark.parametrize(
    "space", [_EYE, spaces.Dict(at=spaces.Box(-1, 1, (2,)), eye=_EYE)], ids=["one", "part"]
)
@pytest.mark.parametrize(
    "convert", [np.int64, np.float32, np.ndarray.tolist], ids=["int64", "float32", "list"]
)
def test_pictures_of_any_type_of_number_are_bytes(
    space: gym.Space[Any], convert: Callable[[Any], Any]
) -> None:
    stores = []
    for each in (convert, np.asarray):
        env = _Pictures(space, each)
        stores.append(store_of_episodes([env.episode(seed) for seed in range(3)], env))
    found, wanted = stores
    assert found.observations.dtype == np.uint8
    np.testing.assert_array_equal(found.observations, wanted.observations)
    model = build_model(found)
    outputs = [model(gather(store, np.arange(3), np.full(3, 2), 4).to_torch()) for store in stores]
    torch.testing.assert_close(*outputs)
    env = _Pictures(space, convert)
    policy = SequencePolicy(model)
    policy.reset(1.0)
    assert env.action_space.contains(policy.act(env.reset(seed=0)[0]))
    vector = vectorize(partial(PlainEnv, env, model.spec.flattening), 1)
    seen, _ = vector.reset(seed=0)
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen[0], wanted.trajectory(0).observations[0])


@pytest.mark.parametrize(
    "space", [_EYE, spaces.Dict(at=spaces.Box(-1, 1, (2,)), eye=_EYE)], ids=["one", "part"]
)
@pytest.mark.parametrize("bad", [0.5, 256, -1, np.nan])
def test_pictures_that_are_no_bytes_are_refused(space: gym.Space[Any], bad: float) -> None:
    def convert(picture: Any) -> Any:
        changed = picture.astype(np.float32)
        changed[3, 4, 1] = bad
        return changed

    env = _Pictures(space, convert)
    refusal = rf"pictures hold {bad}[.0]*; .* whole numbers from 0 to 255: convert them"
    with pytest.raises(UserError, match=refusal):
        store_of_episodes([env.episode(0)], env)
    with pytest.raises(UserError, match=refusal):
        PlainEnv(env, None).reset(seed=0)


def test_an_environment_that_cannot_be_written_is_left_out_and_said() -> None:
    env = gym.make("Pendulum-v1", disable_env_checker=True)
    assert env.spec is not None
    env.spec.kwargs["g"] = lambda: 9.8
    store = store_of_episodes(_episodes(_Env(env.observation_space, env.action_space), 2), env)
    assert store.info.env_spec is None
    (note,) = store.info.metadata[NOTES]
    assert note.startswith(
        "the environment is not recorded: the environment Pendulum-v1 was made with g=<function"
    )


def test_what_is_no_array_is_sent_there() -> None:
    env = _Env(OBSERVATIONS["parts"], ACTIONS["vector"])
    (episode,) = _episodes(env, 1)
    with pytest.raises(
        UserError, match=r"observations are no array of numbers but list; .*store_of_episodes"
    ):
        Trajectory(episode.observations, episode.actions, episode.rewards, False)
    listed = Trajectory([[0.0, 1.0]] * 2, [[0.5, 0.5]], [1.0], False)
    assert listed.observations.shape == (2, 2)
    for spaces_ in (
        (OBSERVATIONS["parts"], ACTIONS["vector"]),
        (spaces.Box(-1, 1, (2,)), ACTIONS["buttons"]),
    ):
        with pytest.raises(UserError, match=r"not both arrays that models read; .*store_of_episodes"):
            TrajectoryStore.from_trajectories([listed], DatasetInfo("x", *spaces_))


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (
            [False] * 10,
            r"terminated is 10 values; it is one for the whole episode, as in terminated\[-1\]",
        ),
        (np.zeros(10, bool), r"terminated is 10 values"),
        ([[True], [True, False]], r"terminated is \[\[True\], \[True, False\]\]; it must be true or false"),
        ("False", r"terminated is 'False'; it must be true or false"),
        (None, r"terminated is None; it must be true or false"),
        (7, r"terminated is 7; it must be true or false"),
        (np.nan, r"terminated is nan; it must be true or false"),
    ],
    ids=["list", "array", "ragged", "text", "none", "number", "nan"],
)
def test_whether_an_episode_terminated_is_one_truth(ended: Any, message: str) -> None:
    env = _Env(spaces.Box(-1, 1, (2,)), ACTIONS["vector"])
    (episode,) = _episodes(env, 1)
    for fits in (True, np.bool_(True), 1, np.array([1]), np.float32(1)):
        assert store_of_episodes([replace(episode, terminated=fits)], env).terminated.tolist() == [True]
    with pytest.raises(UserError, match=message):
        store_of_episodes([replace(episode, terminated=ended)], env)


def test_what_is_no_episode_or_environment_is_named() -> None:
    env = _Env(spaces.Box(-1, 1, (2,)), ACTIONS["vector"])
    with pytest.raises(UserError, match=r"an episode is a dict; give rayrl_dt.types.RawEpisode"):
        store_of_episodes([{}], env)
    with pytest.raises(UserError, match=r"env is 'Pendulum-v1'; give an environment, such as gym.make"):
        store_of_episodes(_episodes(env, 1), "Pendulum-v1")


class _NoSpaces(gym.Env[Any, Any]):
    pass


def test_an_environment_without_spaces_is_named() -> None:
    with pytest.raises(UserError, match=r"environment _NoSpaces has no observation_space; set it"):
        PlainEnv(_NoSpaces(), None)
