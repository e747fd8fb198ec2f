"""Every way of naming an environment, and what is said when a name leads nowhere."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from rayrl_dt import envs
from rayrl_dt.envs import RecordedEnv, resolve, spaces_json
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.errors import UserError


class DictEnv(gym.Env[Any, Any]):
    """Observes a dict; not registered."""

    observation_space = gym.spaces.Dict({"b": gym.spaces.Box(0, 1, (2,)), "a": gym.spaces.Discrete(3)})
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, start: int = 0) -> None:
        self.start = start

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return {"b": np.ones(2, np.float32), "a": np.int64(self.start)}, {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], 0.0, False, False, {}


def not_an_env(**kwargs: Any) -> str:
    return "hello"


def test_makes_a_registered_id() -> None:
    env = envs.make("Pendulum-v1", g=9.0)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 200
    assert env.unwrapped.g == 9.0


def test_makes_module_and_id_registering_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_registering_module.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert isinstance(envs.make("my_registering_module:Mine-v0").action_space, gym.spaces.Discrete)
    finally:
        gym.registry.pop("Mine-v0", None)


def test_makes_a_class_and_flattens_what_it_observes() -> None:
    env = envs.make(f"{__name__}:DictEnv", start=2)
    observation, _ = env.reset()
    np.testing.assert_array_equal(observation, [0, 0, 1, 1, 1])
    assert env.observation_space.shape == (5,)


def test_entry_points_that_moved_are_those_registered_here() -> None:
    stale = EnvSpec("Pendulum-v1", entry_point="gymnasium.nowhere:PendulumEnv", max_episode_steps=150)
    env = RecordedEnv.of(stale).make()
    assert env.spec is not None and env.spec.max_episode_steps == 150
    with pytest.raises(UserError, match=r"cannot be made .*gravity"):
        RecordedEnv.of(EnvSpec("Pendulum-v1", entry_point="", kwargs={"gravity": 3})).make()


def test_makes_robotics_and_atari_ids_without_an_import() -> None:
    pytest.importorskip("gymnasium_robotics")
    assert envs.make("PointMaze_UMaze-v3").observation_space.shape == (8,)
    pytest.importorskip("ale_py")
    assert envs.make("ALE/Pong-v5", preset="raw").observation_space.shape == (210, 160, 3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Pendulun-v1", "Did you mean 'Pendulum-v1'"),
        ("Pendulum-v9", "Did you mean 'Pendulum-v1'"),
        ("Qwertyuiop", "Give a registered Gymnasium id"),
        ("nowhere/Pendulum-v1", "unknown environment"),
        ("no.such.module:Env-v0", "needs no.such.module, which cannot be imported"),
        (f"{__name__}:NoSuchEnv", f"unknown environment '{__name__}:NoSuchEnv'"),
        ("{not json", "not an environment specification"),
        (f"{__name__}:not_an_env", "must inherit from the gymnasium.Env class"),
        ("Hopper-v2", "cannot be made"),
    ],
)
def test_says_what_is_wrong_with_a_name(name: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        envs.make(name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_says_what_is_wrong_with_an_argument() -> None:
    with pytest.raises(UserError, match="gravity"):
        envs.make("Pendulum-v1", gravity=3)


def test_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_robotics(name: str, *rest: Any) -> Any:
        if name == "gymnasium_robotics":
            raise ImportError("No module named 'gymnasium_robotics'")
        return real(name, *rest)

    monkeypatch.setattr(resolve.importlib, "import_module", without_robotics)
    for registered in [name for name in gym.registry if name.startswith("PointMaze")]:
        monkeypatch.delitem(gym.registry, registered)
    with pytest.raises(UserError, match=r"pip install 'rayrl_dt\[robotics\]'"):
        envs.make("PointMaze_UMaze-v3")


def test_vectors_are_copies() -> None:
    vector = RecordedEnv.named("Pendulum-v1").make_vector(3)
    observations, _ = vector.reset(seed=0)
    assert observations.shape == (3, 3)
    vector.close()


def test_spaces_may_differ_in_number_type_and_observation_bounds() -> None:
    box = gym.spaces.Box
    envs.check_spaces(
        box(-np.inf, np.inf, (3,), np.float64),
        box(-1, 1, (2,), np.float64),
        box(-5, 5, (3,), np.float32),
        box(-1, 1, (2,), np.float32),
    )
    for dtype in (np.int32, np.uint8):
        ours = gym.spaces.MultiDiscrete([3, 2], dtype=dtype, start=[1, 0])
        kept = spaces_json.from_json(spaces_json.to_json(ours))
        envs.check_spaces(box(-1, 1, (3,)), ours, box(-1, 1, (3,)), kept)
        with pytest.raises(UserError, match="the environment's actions are MultiDiscrete"):
            envs.check_spaces(box(-1, 1, (3,)), ours, box(-1, 1, (3,)), gym.spaces.MultiDiscrete([3, 2]))
    composite = DictEnv.observation_space
    flat = gym.spaces.flatten_space(composite)
    envs.check_spaces(composite, gym.spaces.Discrete(2), flat, gym.spaces.Discrete(2))


@pytest.mark.parametrize(
    ("env", "data", "what"),
    [
        (((3,), 1.0), ((4,), 1.0), "observations"),
        (((3,), 1.0), ((3,), 2.0), "actions"),
        (((3,), 1.0), ((3,), None), "actions"),
    ],
)
def test_spaces_that_do_not_fit_are_both_named(env: Any, data: Any, what: str) -> None:
    spaces = []
    for shape, bound in (env, data):
        spaces.append(gym.spaces.Box(-1, 1, shape))
        spaces.append(gym.spaces.Discrete(2) if bound is None else gym.spaces.Box(-bound, bound, (2,)))
    with pytest.raises(UserError, match=f"the environment's {what} are .* the data set's are .*choose"):
        envs.check_spaces(*spaces)


def test_pictures_with_numbers_are_not_their_bytes() -> None:
    picture = gym.spaces.Box(0, 255, (36, 40, 3), np.uint8)
    env = gym.spaces.Dict({"at": gym.spaces.Box(-1, 1, (2,)), "eye": picture})
    choice, packed = gym.spaces.Discrete(2), Flattening(env).flat
    envs.check_spaces(env, choice, packed, choice)
    with pytest.raises(UserError, match=r"observations are Packed\(2 numbers.* the data set's are Box\("):
        envs.check_spaces(env, choice, gym.spaces.Box(0, 255, packed.shape, np.uint8), choice)
