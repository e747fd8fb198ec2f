"""From a name to an environment: the one place where environments are made.

An environment is named by a string wherever possible, because a string can be resolved in any Ray worker:

* a Gymnasium id, `Hopper-v5` (also those of gymnasium-robotics and ALE, registered when first needed);
* `package.module:EnvId`, Gymnasium's own form: importing the module registers the id;
* `package.module:EnvClass`, a class or function that returns an environment;
* a specification as JSON, as Minari data sets store it.

Observations become the arrays that models read, as they do when data is read (`rayrl_dt.envs.observations`), and
rewards one number each.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.errors import UserError

__all__ = ["check_spaces", "make", "make_vector", "to_string"]

Env = gym.Env[Any, Any]
Space = gym.Space[Any]

# Packages that register environments when imported, the ids by which to recognize them when they are
# missing, and the remedy.
_EXTRAS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("rayrl_dt.envs", (), ""),
    ("ale_py", ("ALE/",), "pip install ale-py"),
    (
        "gymnasium_robotics",
        ("PointMaze", "AntMaze", "Fetch", "Hand", "Adroit", "FrankaKitchen", "MaMuJoCo"),
        "pip install 'rayrl_dt[robotics]'",
    ),
)
_REFUSALS = (gym.error.Error, ImportError, AttributeError, TypeError)


def make(env: str | EnvSpec, **kwargs: Any) -> Env:
    """Make an environment.

    Args:
        env: a name as listed in the module's docstring, or a Gymnasium specification.
        kwargs: passed to the environment's constructor.

    Raises:
        UserError: the environment is unknown, needs a package that is missing, or refuses `kwargs`.
    """
    return PlainEnv(_make(env, kwargs), None)


def make_vector(
    env: str | EnvSpec,
    num_envs: int,
    *,
    mode: Literal["sync", "async"] = "sync",
    autoreset: gym.vector.AutoresetMode = gym.vector.AutoresetMode.NEXT_STEP,
    spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None,
    flattening: Flattening | None = None,
    **kwargs: Any,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make `num_envs` copies behind Gymnasium's vector interface.

    Args:
        env: as for `make`.
        num_envs: how many.
        mode: step them in turn, or each in a process of its own (for slow environments).
        autoreset: what happens at an episode's end.
        spaces: observation and action space that a policy expects of it; None for any.
        flattening: how the policy's data were flattened; None for the environment's own order of parts.
        kwargs: passed to each environment's constructor.

    Raises:
        UserError: there is no such environment, or its spaces are not the expected ones.
    """
    makers: list[Callable[[], Env]] = [partial(_make_plain, to_string(env), flattening, kwargs)] * num_envs
    vector: gym.vector.VectorEnv[Any, Any, Any]
    if mode == "async":
        vector = gym.vector.AsyncVectorEnv(makers, autoreset_mode=autoreset)
    else:
        vector = gym.vector.SyncVectorEnv(makers, autoreset_mode=autoreset)
    if spaces is not None:
        try:
            check_spaces(vector.single_observation_space, vector.single_action_space, *spaces)
        except UserError:
            vector.close()
            raise
    return vector


def to_string(env: str | EnvSpec) -> str:
    """Return a string that `make` resolves in any process: the name itself, or the specification as JSON."""
    return env if isinstance(env, str) else env.to_json()


def check_spaces(
    env_observation: Space, env_action: Space, data_observation: Space, data_action: Space
) -> None:
    """Check that a policy learned from the data fits the environment.

    Number types may differ, and so may the bounds of observations; composite observations are compared
    flattened. The bounds of actions must agree, because they scale the policy's output.

    Raises:
        UserError: a space differs.
    """
    _check_space("observations", _flat(env_observation), _flat(data_observation))
    _check_space("actions", env_action, data_action)


def _check_space(what: str, env: Space, data: Space) -> None:
    same: bool
    if isinstance(env, gym.spaces.Box) and isinstance(data, gym.spaces.Box):
        same = env.shape == data.shape
        if same and what == "actions":
            same = np.allclose(env.low, data.low, atol=1e-5) and np.allclose(env.high, data.high, atol=1e-5)
    elif isinstance(env, gym.spaces.Discrete) and isinstance(data, gym.spaces.Discrete):
        same = (env.n, env.start) == (data.n, data.start)
    else:
        same = env == data
    if not same:
        raise UserError(
            f"the environment's {what} are {env}, the data set's are {data}; choose the environment that the "
            "data was collected in (leave environment.env out to recover it), or another data set"
        )


def _flat(space: Space) -> Space:
    return Flattening(space, kept=isinstance(space, gym.spaces.Box)).flat


def _make_plain(env: str | EnvSpec, flattening: Flattening | None, kwargs: dict[str, Any]) -> Env:
    return PlainEnv(_make(env, kwargs), flattening)


def _make(env: str | EnvSpec, kwargs: dict[str, Any]) -> Env:
    if isinstance(env, str) and env.lstrip().startswith("{"):
        env = _spec_from_json(env)
    if isinstance(env, EnvSpec):
        return make_spec(env, kwargs)
    return _make_imported(env, kwargs) if ":" in env else _make_id(env, kwargs)


def _make_id(name: str, kwargs: dict[str, Any]) -> Env:
    try:
        return gym.make(name, disable_env_checker=True, **kwargs)
    except gym.error.UnregisteredEnv:
        _register_extras(name)
    except _REFUSALS as error:
        raise _refused(name, error) from error
    try:
        return gym.make(name, disable_env_checker=True, **kwargs)
    except gym.error.UnregisteredEnv as error:
        raise unknown(name) from error
    except _REFUSALS as error:
        raise _refused(name, error) from error


def _make_imported(name: str, kwargs: dict[str, Any]) -> Env:
    module_name, _, member = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"environment {name!r}: cannot import {module_name} ({error}); install it or put it on PYTHONPATH"
        ) from error
    creator = getattr(module, member, None)
    if member in gym.registry or creator is None:
        return _make_id(member, kwargs)
    try:
        made = creator(**kwargs)
    except _REFUSALS as error:
        raise _refused(name, error) from error
    if not isinstance(made, gym.Env):
        raise UserError(f"{name} made a {type(made).__name__}; it must return a gymnasium.Env")
    return made


def registered(name: str) -> EnvSpec | None:
    """Return what is registered under an id, importing the packages that register environments if need be."""
    if name not in gym.registry:
        _register_extras(name)
    return gym.registry.get(name)


def make_spec(spec: EnvSpec, kwargs: dict[str, Any]) -> Env:
    """Make an environment from its specification, or, if that is out of date, from its id; not flattened.

    Raises:
        UserError: neither can be made.
    """
    try:
        return gym.make(spec, disable_env_checker=True, **kwargs)
    except (*_REFUSALS, ValueError) as error:
        # Specifications age: entry points move and arguments are renamed. The id is what people mean.
        made = _make_id(spec.id, kwargs)
        warnings.warn(
            f"the data set's own specification of {spec.id} cannot be made ({error}); "
            f"using {spec.id} as registered here",
            stacklevel=3,
        )
        return made


def _spec_from_json(text: str) -> EnvSpec:
    try:
        return EnvSpec.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"not an environment specification ({error}); give an id such as Hopper-v5, or the output of "
            "env.spec.to_json()"
        ) from error


def _register_extras(name: str) -> None:
    """Import the packages that register environments on import; say which one is missing for `name`."""
    for package, prefixes, remedy in _EXTRAS:
        try:
            # gymnasium-robotics greets on standard error, where our own errors are one line.
            with contextlib.redirect_stderr(io.StringIO()):
                gym.register_envs(importlib.import_module(package))
        except ImportError as error:
            if name.startswith(prefixes):
                raise UserError(
                    f"environment {name!r} needs {package}, which is missing: {remedy}"
                ) from error


def _refused(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"environment {name!r} cannot be made ({reason}); check its arguments and its packages")


def unknown(name: str) -> UserError:
    """Return the error that names the ids nearest to an unknown one."""
    return UserError(f"unknown environment {name!r}.{_nearest(name)}")


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, gym.registry.keys(), n=3, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(option) for option in close)}?"
    return " Give a registered Gymnasium id, or package.module:EnvClass."
