"""One data set, one environment: the same in training, resumed runs, runners, trials, `eval`, `finetune`, `refine`.

Each kind of environment is recorded or named once, and made by every path, here and in a process that has registered
nothing; what they make is compared with what Gymnasium makes of the recording.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_kinds import KINDS, ROLLED, WITH_RAY, Kind, pendulum, record
from env_paths import MODEL, PATHS, Case, all_paths, of_runners, resolved, seen
from gymnasium.wrappers import TimeLimit
from own_envs import Walk
from ray.tune.registry import register_env

from rayrl_dt.data.readers import minari_io
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import save_bundle
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.runs.config_files import build_config

pytestmark = pytest.mark.slow
Maker = Callable[[], gym.Env[Any, Any]]
TESTS = Path(__file__).parents[1]


def train(kind: Kind, folder: Path) -> Case:
    """What a training run leaves, without the training."""
    values = {
        "algorithm": "DT",
        "environment": kind.section,
        "offline_data": {"dataset": record(kind, folder / "data")},
        "rl_module": {"model_config": MODEL},
    }
    config = resolved(build_config(values))
    spec = config.resolved_spec
    bundle = save_bundle(spec, SequenceModel(spec).state_dict(), folder / "policy")
    if config.env is not None:
        values["environment"] = {**kind.section, "env": config.env}
    return Case(values, config.get_state(), bundle)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The cases that can be made on this machine."""
    made = {}
    gym.register("Script-v0", entry_point=Walk, kwargs={"size": 2.0}, max_episode_steps=8)
    register_env("ray-walk", lambda config: TimeLimit(Walk(config["size"]), 8))
    try:
        for name, kind in KINDS.items():
            try:
                made[name] = train(kind, tmp_path_factory.mktemp("run"))
            except pytest.skip.Exception:
                continue
        yield made
    finally:
        del gym.registry["Script-v0"]


@pytest.fixture(scope="module")
def here(cases: dict[str, Case]) -> dict[str, Any]:
    before = {
        name: (spec.entry_point, str(spec.kwargs), spec.max_episode_steps)
        for name, spec in gym.registry.items()
    }
    found = {name: all_paths(case) for name, case in cases.items()}
    after = {
        name: (spec.entry_point, str(spec.kwargs), spec.max_episode_steps)
        for name, spec in gym.registry.items()
    }
    assert before.items() <= after.items(), "nobody writes Gymnasium's registry"
    return found


@pytest.fixture(scope="module")
def elsewhere(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a new process finds, which has registered and imported nothing."""
    file = tmp_path_factory.mktemp("cases") / "cases"
    file.write_bytes(pickle.dumps({name: tuple(vars(case).values()) for name, case in cases.items()}))
    done = subprocess.run(
        [sys.executable, str(TESTS / "env_paths.py"), str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@cache
def wanted(name: str) -> list[Any]:
    """What Gymnasium makes of the kind: to collect in, and to evaluate in."""
    kind = KINDS[name]
    return [
        seen(gym.vector.SyncVectorEnv([lambda maker=maker: PlainEnv(maker(), None)]))
        for maker in (kind.makes, kind.evaluation or kind.makes)
    ]


@pytest.mark.parametrize("place", ["here", "elsewhere"])
@pytest.mark.parametrize("path", [name for name in PATHS if name != "untrusted"])
@pytest.mark.parametrize("name", ROLLED)
def test_every_path_makes_the_same(request: pytest.FixtureRequest, name: str, path: str, place: str) -> None:
    results = request.getfixturevalue(place)
    if name not in results:
        pytest.skip("its package is missing here")
    found = results[name][path]
    if (name, path, place) == ("a script's own", "from_file", "elsewhere"):
        assert found[0].startswith("refused: unknown environment 'Script-v0'.")  # the script has not run
        return
    if name == WITH_RAY and (place == "elsewhere" or path in ("by_bundle", "finetune")):
        # A creator has no name: only the process that registered it, and its runners, can call it.
        assert "'ray-walk'" in found[0] and ("not registered here" in found[0] or "unknown" in found[0])
        return
    expected = wanted(name)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(expected[-len(found) :]))


@pytest.mark.parametrize("name", [name for name in ROLLED if name != WITH_RAY])
def test_code_runs_unasked_only_if_its_package_is_known(elsewhere: dict[str, Any], name: str) -> None:
    if name not in elsewhere:
        pytest.skip("its package is missing here")
    (found,) = elsewhere[name]["untrusted"]
    if KINDS[name].known:
        assert found == "made"
    else:
        assert "so it was not run; if you trust own_envs, add --trust-environment" in found


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_without_an_environment_there_is_training_and_a_word(
    request: pytest.FixtureRequest, place: str
) -> None:
    results = request.getfixturevalue(place)
    for path in ("from_file", "from_checkpoint", "remote_runner"):
        (none,), (lost,) = results["none"][path], results["not here"][path]
        assert none.startswith("none: no environment is recorded with store:")
        assert (
            lost.startswith("none: the environment Lost-v0 is recorded with code")
            and "no_such_package" in lost
        )
    assert "name one with --env" in results["none"]["by_bundle"][0]
    assert "cannot be made (No module named 'no_such_package')" in results["not here"]["by_bundle"][0]
    # The algorithm refuses it, with these words.
    assert results["none"]["finetune"][0].startswith("none: no environment is recorded with store:")


def test_arguments_that_the_recorded_environment_has_not_are_refused(cases: dict[str, Case]) -> None:
    values = {**cases["limit"].values, "environment": {"env_config": {"gravity": 3.0}}}
    with pytest.raises(UserError, match=r"'Pendulum-v1' cannot be made .*gravity"):
        resolved(build_config(values))


def test_a_minari_set_with_an_environment_to_evaluate_in(make_trajectories: Any, tmp_path: Path) -> None:
    """As Minari's mazes: a limit of a million steps to collect in, and another environment for policies."""
    space = pendulum().observation_space
    minari_io.write(
        "toy/maze-v0",
        make_trajectories(action_dim=1),
        observation_space=gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32),
        action_space=pendulum().action_space,
        env_spec=pendulum().spec,
        author="tests",
        algorithm_name="noise",
        description="Random numbers.",
    )
    file = minari_io.datasets_root() / "toy/maze-v0/data/metadata.json"
    raw, endless = json.loads(file.read_text()), {"max_episode_steps": 1000000.0}
    recorded = {**json.loads(raw["env_spec"]), **endless}
    other = {**recorded, "kwargs": {"g": 3.0, "render_mode": "human"}, "max_episode_steps": 11.0}
    file.write_text(json.dumps({**raw, "env_spec": json.dumps(recorded), "eval_env_spec": json.dumps(other)}))
    values = {"algorithm": "DT", "offline_data": {"dataset": "minari:toy/maze-v0"}}
    config = resolved(build_config({**values, "rl_module": {"model_config": MODEL}}))
    assert config.sequence_model.max_episode_steps is None
    assert config.resolved_spec.model.max_episode_steps == 30, "the longest episode, and no million"
    expected = [
        seen(gym.vector.SyncVectorEnv([lambda kwargs=kwargs: PlainEnv(pendulum(11, **kwargs), None)]))
        for kwargs in ({}, {"g": 3.0})
    ]
    assert of_runners(config) == expected
