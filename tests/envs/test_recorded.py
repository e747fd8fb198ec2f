"""The environment of a data set as one object: whole in JSON, made anywhere, and no code of strangers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import RenderCollection, RescaleAction, TransformObservation, TransformReward

from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.recorded import time_limit
from rayrl_dt.envs.spec_text import spec_text, unmarked
from rayrl_dt.errors import UserError


class Mine(gym.Env[Any, Any]):
    """Not registered anywhere."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, size: int = 1) -> None:
        self.size = size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, {}


def again(recorded: RecordedEnv) -> RecordedEnv:
    return RecordedEnv.from_json(json.loads(json.dumps(recorded.to_json(), allow_nan=False)))


def steps_until_the_end(env: gym.Env[Any, Any]) -> int:
    env.reset(seed=0)
    for step in range(1, 10_000):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            return step
    raise AssertionError("no end")


def test_limit_arguments_and_wrappers_are_kept() -> None:
    made = RescaleAction(gym.make("Pendulum-v1", max_episode_steps=50, g=9.0), -1.0, 1.0)
    assert made.spec is not None
    recorded = again(RecordedEnv.of(EnvSpec.from_json(made.spec.to_json())))
    assert recorded == RecordedEnv.of(EnvSpec.from_json(made.spec.to_json()))
    env = recorded.make()
    assert env.unwrapped.g == 9.0
    assert env.action_space.high == 1 and steps_until_the_end(env) == 50
    before = gym.spec("Pendulum-v1")
    assert before.kwargs == {} and before.max_episode_steps == 200
    changed = recorded.changed(max_episode_steps=7, g=5.0)
    assert changed.make().unwrapped.g == 5.0
    assert steps_until_the_end(changed.make()) == 7


def test_what_showed_a_recording_is_dropped() -> None:
    made = RenderCollection(gym.make("Pendulum-v1", render_mode="rgb_array"))
    assert made.spec is not None
    recorded = RecordedEnv.of(made.spec)
    assert recorded.kwargs == {} and recorded.wrappers == () and recorded.make().render_mode is None


def test_a_class_as_entry_point_goes_by_its_name() -> None:
    written = RecordedEnv.of(EnvSpec.from_json(spec_text(EnvSpec("Mine-v0", entry_point=Mine))))
    assert written.entry_point == f"{__name__}:Mine" and not written.needs_this_process
    assert RecordedEnv.of(EnvSpec("Mine-v0", entry_point=lambda: Mine())).needs_this_process
    assert RecordedEnv("Mine-v0", "__main__:Mine").needs_this_process
    with pytest.raises(UserError, match=r"env_config.size is .*, which no file can hold"):
        RecordedEnv.named(f"{__name__}:Mine", size=np.float32(1))
    with pytest.raises(UserError, match="max_episode_steps is 'ten'"):
        RecordedEnv.named("Pendulum-v1", max_episode_steps="ten")


@pytest.mark.parametrize(
    ("recorded", "limit"),
    [
        (None, None),
        (200, 200),
        (200.0, 200),
        (1_000_000, None),
        (1e6, None),
        ("200", None),
        (-1, None),
        (True, None),
    ],
)
def test_a_million_steps_are_no_limit(recorded: Any, limit: int | None) -> None:
    assert time_limit(recorded) == limit


def test_policies_are_evaluated_where_the_data_say() -> None:
    spec, other = gym.spec("Pendulum-v1"), gym.spec("CartPole-v1")
    recorded = again(RecordedEnv.of(spec, other))
    assert recorded.for_evaluation.id == "CartPole-v1" and recorded.limit == 500
    assert isinstance(recorded.for_evaluation.make().action_space, gym.spaces.Discrete)
    alone = RecordedEnv.of(spec, gym.spec("Pendulum-v1"))
    assert alone.evaluation is None and alone.for_evaluation is alone


def test_an_unregistered_environment_of_a_trusted_package_is_made_whole() -> None:
    recorded = RecordedEnv("Mine-v0", f"{__name__}:Mine", {"size": 3}, max_episode_steps=6)
    package = __name__.partition(".")[0]
    with pytest.raises(
        UserError, match=rf"{__name__}:Mine, so it was not run; .*--trust-environment .*{package}:Mine-v0"
    ):
        recorded.make()
    env = recorded.trusting().make()
    assert env.unwrapped.size == 3 and steps_until_the_end(env) == 6
    vector = recorded.trusting().make_vector(2)
    assert vector.reset()[0].shape == (2, 2)
    vector.close()


@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        (
            RecordedEnv("Bad-v0", "subprocess:Popen", {"args": ["touch", "bad"]}),
            "may have written, subprocess:Popen, so it was not run",
        ),
        (RecordedEnv("Bad-v0", "gymnasium.spaces.utils:flatten"), "which is no Env"),
        (RecordedEnv("Bad-v0", "gymnasium.nowhere:Env"), "cannot be imported"),
        (RecordedEnv("Bad-v0", "gymnasium.core:Nothing"), "which is no Env"),
        (RecordedEnv("Bad-v0"), "not registered here; install its package"),
    ],
)
def test_code_that_data_name_is_not_run(recorded: RecordedEnv, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        recorded.make()
    assert "\n" not in str(caught.value)


def test_wrappers_of_strangers_are_not_run() -> None:
    made = TransformReward(gym.make("Pendulum-v1"), lambda reward: reward)
    assert made.spec is not None
    recorded = RecordedEnv.of(made.spec)
    odd = replace(recorded.wrappers[-1], entry_point="os:system")
    with pytest.raises(UserError, match="os:system, so it was not run"):
        replace(recorded, wrappers=(odd,)).make()


class Doubled(gym.Wrapper[Any, Any, Any, Any]):
    """Records no arguments."""


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: TransformReward(env, lambda reward: reward),
        lambda env: TransformObservation(env, lambda seen: seen, env.observation_space),
        lambda env: Doubled(env),
    ],
    ids=["function", "function and space", "no arguments"],
)
def test_a_wrapper_that_cannot_be_written_is_named(wrap: Any) -> None:
    made = wrap(gym.make("Pendulum-v1"))
    recorded = again(RecordedEnv.of(EnvSpec.from_json(spec_text(made.spec))))
    assert recorded == RecordedEnv.of(made.spec)
    with pytest.raises(
        UserError, match=rf"recorded in {type(made).__name__}, .*register an environment"
    ) as caught:
        recorded.trusting().make()
    assert "\n" not in str(caught.value)


def test_arguments_of_numpy_are_written() -> None:
    low, high = np.float32(-1), np.float32(1)
    made = RescaleAction(gym.make("Pendulum-v1", g=np.float64(4.0)), low, high)
    recorded = again(RecordedEnv.of(EnvSpec.from_json(spec_text(made.spec))))
    assert recorded == RecordedEnv.of(made.spec) and recorded.kwargs == {"g": 4.0}
    assert recorded.make().action_space == made.action_space and recorded.make().unwrapped.g == 4.0
    with pytest.raises(UserError, match=r"Mine-v0 was made with size=<object .*, which no file can hold"):
        spec_text(EnvSpec("Mine-v0", entry_point=Mine, kwargs={"size": object()}))


def games() -> None:
    gym.register_envs(pytest.importorskip("ale_py"))


def pong(**kwargs: Any) -> gym.Env[Any, Any]:
    games()
    return gym.make("ALE/Pong-v5", **kwargs)


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1")


SEQUENCES: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "reshaped": lambda: wrappers.ReshapeObservation(pendulum(), (3, 1)),
    "resized": lambda: wrappers.ResizeObservation(pong(), (84, 80)),
    "preprocessed": lambda: wrappers.AtariPreprocessing(pong(frameskip=1), screen_size=(84, 80)),
    "skips": lambda: pong(frameskip=(2, 5)),
    "actions": lambda: RescaleAction(pendulum(), *np.array([[-1.0], [3.0]], np.float32)),
    "observations": lambda: wrappers.RescaleObservation(
        pendulum(), *np.array([[-1, -2, -3], [1, 2, 3]], np.float32)
    ),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_tuples_and_arrays_are_what_they_were(kind: str) -> None:
    made = SEQUENCES[kind]()
    assert made.spec is not None
    recorded = RecordedEnv.of(made.spec)
    for read in (recorded, again(recorded), RecordedEnv.of(EnvSpec.from_json(spec_text(made.spec)))):
        assert read == recorded
        env = read.make()
        assert env.action_space == made.action_space
        for ours, theirs in zip(steps_of(env), steps_of(made), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def steps_of(env: gym.Env[Any, Any]) -> list[Any]:
    observations = [np.ravel(env.reset(seed=3)[0])]
    env.action_space.seed(3)
    for _ in range(3):
        observations.append(np.ravel(env.step(env.action_space.sample())[0]))
    return observations


@pytest.mark.parametrize("kind", SEQUENCES)
def test_lists_in_the_texts_of_others_stand_for_tuples_and_arrays(kind: str) -> None:
    made = SEQUENCES[kind]()
    assert made.spec is not None
    text = unmarked(made.spec).to_json()
    assert '"tuple"' not in text and '"array"' not in text
    assert unmarked(EnvSpec.from_json(spec_text(made.spec))).to_json() == text
    env = again(RecordedEnv.of(EnvSpec.from_json(text))).make()
    np.testing.assert_array_equal(steps_of(env), steps_of(made))
    assert env.action_space.shape == made.action_space.shape


def test_sequences_within_arguments_are_kept() -> None:
    sizes = {"inner": [(1, [2.0, np.inf]), np.array([[1, 2], [3, 4]], np.int16)]}
    recorded = again(RecordedEnv.of(EnvSpec("Mine-v0", entry_point=Mine, kwargs={"size": sizes})))
    pair, array = recorded.trusting().make().unwrapped.size["inner"]
    assert pair == (1, [2.0, np.inf]) and array.dtype == np.int16 and array.tolist() == [[1, 2], [3, 4]]
    named = again(RecordedEnv.named(f"{__name__}:Mine", size=(1, 2)))
    assert named.trusting().make().unwrapped.size == (1, 2)
    for broken in ([[1], [2, 3]], ["a"], [300]):
        size = {"array": broken, "dtype": "uint8"}
        with pytest.raises(UserError, match="'Mine-v0' cannot be made"):
            RecordedEnv("Mine-v0", f"{__name__}:Mine", {"size": size}).trusting().make()


def test_where_nothing_can_be_made_the_first_refusal_is_told() -> None:
    recorded = RecordedEnv("Pendulum-v1", kwargs={"sizes": [1, 2]})
    with pytest.raises(UserError, match=r"cannot be made .*unexpected keyword argument 'sizes'"):
        recorded.make()


def test_numbers_that_json_has_not_come_back() -> None:
    made = RescaleAction(gym.make("Pendulum-v1", g=np.inf), -1.0, 1.0)
    recorded = RecordedEnv.of(made.spec, gym.make("Pendulum-v1", g=-np.inf).spec)
    assert again(recorded) == recorded and again(recorded).make().unwrapped.g == np.inf
    unknown = again(RecordedEnv("Pendulum-v1", kwargs={"grid": [1, float("nan")]}))
    assert np.isnan(unknown.kwargs["grid"][1])


def test_what_the_user_names_is_known_by_its_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package_of_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=30)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        mine = again(RecordedEnv.named("my_package_of_envs:Mine-v0", g=5.0))
        assert mine.max_episode_steps == 30
        env = mine.trusting().make()
        assert env.unwrapped.g == 5.0 and steps_until_the_end(env) == 30
        with pytest.raises(UserError, match="my_package_of_envs:Mine-v0, so it was not run"):
            mine.make()
    finally:
        gym.registry.pop("Mine-v0", None)
    assert RecordedEnv.named("Pendulum-v1") == RecordedEnv.of(gym.spec("Pendulum-v1"))
    limited = RecordedEnv.named(f"{__name__}:Mine", size=2, max_episode_steps=4)
    assert steps_until_the_end(limited.make()) == 4
    with pytest.raises(UserError, match="Did you mean 'Pendulum-v1'"):
        RecordedEnv.named("Pendulun-v1")
    with pytest.raises(UserError, match="cannot be imported"):
        RecordedEnv.named("no.such.module:Env-v0")
