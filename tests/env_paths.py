"""How each command comes to its environment, and what can be seen of one; also run as a process of its own.

`python env_paths.py CASES` reads pickled cases and prints what each path makes of each in a process that knows nothing.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.algorithms.environments import copies
from rayrl_dt.cli.train import _finetune_settings
from rayrl_dt.data import sources
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.spec import evaluated_in
from rayrl_dt.runs.config_files import apply_overrides, build_config

MODEL = {"context_length": 2, "embed_dim": 8, "num_layers": 1, "num_heads": 1}
STEPS = 40


@dataclass(frozen=True)
class Case:
    """What is left of a training run.

    Attributes:
        values: its config file's content.
        checkpoint: the state of its config, resolved, as a checkpoint or a runner gets it.
        bundle: its policy.
    """

    values: dict[str, Any]
    checkpoint: Any
    bundle: Path


def seen(vector: Any) -> list[Any]:
    """What tells an environment from another: its kind, and an episode under the same actions and seed."""
    single = vector.envs[0]
    layers, layer = [], single
    while isinstance(layer, gym.Wrapper):
        layers.append(type(layer).__name__)
        layer = layer.env
    rng = np.random.default_rng(0)
    space = vector.single_action_space
    observations, _ = vector.reset(seed=3)
    episode = [float(np.sum(observations))]
    for _ in range(STEPS):
        if isinstance(space, gym.spaces.Discrete):
            actions = rng.integers(space.n, size=1)
        else:
            actions = rng.uniform(space.low, space.high).astype(np.float32)[None]
        observations, rewards, terminated, truncated, _ = vector.step(actions)
        episode += [float(np.sum(observations)), float(rewards[0])]
        if terminated[0] or truncated[0]:
            break
    vector.close()
    return [layers, type(layer).__name__, str(space), [round(value, 4) for value in episode]]


def of_runners(config: Any) -> list[Any]:
    """What env runners collect in, and what they evaluate in."""
    env, spec = config.rollout_env, config.resolved_spec
    if env is None:
        return [f"none: {config.why_no_env}"]
    return [seen(copies(config, each, spec, 1, mode="sync")) for each in (env, env.for_evaluation)]


def resolved(config: Any) -> Any:
    """The config as an algorithm has it once it has loaded its data."""
    config.resolve(sources.load(config.dataset))
    return config


def from_file(case: Case) -> list[Any]:
    """`train`, `train --resume` and each trial of `tune` read a file."""
    return of_runners(resolved(build_config(case.values)))


def from_checkpoint(case: Case) -> list[Any]:
    """`Algorithm.from_checkpoint` has the config's state."""
    return of_runners(resolved(case.checkpoint["class"].from_state(dict(case.checkpoint))))


def remote_runner(case: Case) -> list[Any]:
    """A remote runner gets the config after the data have resolved it."""
    return of_runners(case.checkpoint["class"].from_state(dict(case.checkpoint)))


def by_bundle(case: Case) -> list[Any]:
    """`eval`, `refine` and `diagnose` have the bundle."""
    spec = Bundle.open(case.bundle).trusting().spec
    spaces = (spec.observation_space, spec.action_space)
    return [seen(evaluated_in(spec).make_vector(1, flattening=spec.flattening, spaces=spaces))]


def untrusted(case: Case) -> list[Any]:
    """The same without `--trust-environment`: whether anything is made."""
    spec = Bundle.open(case.bundle).spec
    evaluated_in(spec).make().close()
    return ["made"]


def finetune(case: Case) -> list[Any]:
    """`finetune RUN --trust-environment` has the bundle and its data."""
    values = apply_overrides(
        _finetune_settings(case.bundle, None),
        # Without a critic, which takes no discrete actions.
        ["environment.trust_environment=true", "online.env_steps=1", "online.rl_gradient=none"],
    )
    return of_runners(resolved(build_config(values)))


PATHS: dict[str, Callable[[Case], list[Any]]] = {
    each.__name__: each
    for each in (from_file, from_checkpoint, remote_runner, by_bundle, untrusted, finetune)
}


def all_paths(case: Case) -> dict[str, list[Any]]:
    """What each path makes, or why it does not."""
    found = {}
    for name, path in PATHS.items():
        try:
            found[name] = path(case)
        except UserError as error:
            found[name] = [f"refused: {error}"]
    return found


if __name__ == "__main__":
    cases = pickle.loads(Path(sys.argv[1]).read_bytes())
    print(json.dumps({name: all_paths(Case(*values)) for name, values in cases.items()}))
