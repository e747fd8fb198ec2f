"""Code that a policy or data name as their environment runs only if its package is known, or the user says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from builders import build_model, store_for
from own_envs import Walk

from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import save_critic

Run = Callable[..., tuple[int, str, str]]
COMMANDS = {
    "eval": ("--targets=1", "--episodes", "1"),
    "refine": ("--target=1", "--episodes", "1", "--eta", "0.1", "--n", "1", "--rule", "plain"),
    "diagnose": ("--targets=1", "--episodes", "1", "--windows", "4"),
    "experiment align-offline --run": ("--steps", "1", "--episodes", "1"),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A policy with a critic for an environment of nobody's package."""
    env = gym.wrappers.TimeLimit(Walk(), 5)
    store = store_for(env)
    store.info = store.info.__class__(f"store:{tmp_path / 'data'}", env.observation_space, env.action_space)
    TrajectoryStore.save(store, tmp_path / "data")
    model = build_model(store)
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "policy", gradient_steps=0)
    save_critic(Bundle.open(path), new_critic(model.spec, hidden=8, seed=0).state_dict(), record={"steps": 1})
    return path


def name_env(bundle: Path, env: Any) -> None:
    header = json.loads((bundle / "policy.json").read_text())
    header["spec"]["env"] = env
    (bundle / "policy.json").write_text(json.dumps(header))


def recorded(entry_point: str, **kwargs: Any) -> dict[str, Any]:
    env: dict[str, Any] = {"id": "Bad-v0", "entry_point": entry_point, "kwargs": kwargs}
    return {**env, "max_episode_steps": 5, "wrappers": [], "evaluation": None}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_policy_cannot_run_code(run: Run, bundle: Path, tmp_path: Path, command: str) -> None:
    proof = tmp_path / "proof"
    popen = recorded("subprocess:Popen", args=["touch", str(proof)])
    spec = {"id": "Bad-v0", "entry_point": "os:system", "kwargs": {"command": f"touch {proof}"}}
    older = json.dumps({**json.loads(gym.spec("Pendulum-v1").to_json()), **spec})
    for env in (popen, older, "os:system", {**popen, "evaluation": popen, "id": "os:system"}):
        name_env(bundle, env)
        status, _, err = run(*command.split(), str(bundle), *COMMANDS[command])
        assert status == 2 and "so it was not run" in err and "--trust-environment" in err
        assert len(err.splitlines()) == 1 and not proof.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_user_may_trust_it_or_name_it(run: Run, bundle: Path, tmp_path: Path, command: str) -> None:
    name_env(bundle, recorded("own_envs:Walk", size=2.0))
    shared = (*command.split(), str(bundle), *COMMANDS[command])
    assert run(*shared)[0] == 2
    for way in (("--trust-environment",), ("--env", "own_envs:Corridor-v0")):
        out = ("--out", str(tmp_path / way[0])) if command != "eval" else ()
        status, _, err = run(*shared, *way, *out)
        assert status == 0, err


@pytest.mark.parametrize("env", [3, [], {"id": 3}, {**recorded("a:B"), "kwargs": 3}, "{"])
def test_nonsense_is_no_environment(run: Run, bundle: Path, env: Any) -> None:
    name_env(bundle, env)
    status, _, err = run("eval", str(bundle), *COMMANDS["eval"])
    assert status == 2 and "is not a whole policy" in err and len(err.splitlines()) == 1
