"""From a name to what Gymnasium knows of it: ids whose packages register when first needed, and errors that help."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs.spec_text import readings
from rayrl_dt.errors import UserError

__all__ = ["TRUSTED", "made_of", "refused", "registered", "unknown"]

TRUSTED = (
    "ale_py",
    "gymnasium",
    "gymnasium_robotics",
    "highway_env",
    "metaworld",
    "minigrid",
    "miniworld",
    "mo_gymnasium",
    "panda_gym",
    "rayrl_dt",
    "shimmy",
)
"""Packages of environments whose classes a data set may name."""

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


def registered(name: str) -> EnvSpec | None:
    """Return what is registered under an id, importing the packages that register environments if need be."""
    if name not in gym.registry:
        _register_extras(name)
    return gym.registry.get(name)


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


def made_of(spec: EnvSpec, name: str, **options: Any) -> gym.Env[Any, Any]:
    """Make the environment of a specification, of its `readings` the first that can be made.

    Args:
        spec: of it.
        name: what messages call it.
        options: of `gymnasium.make`.

    Raises:
        UserError: it cannot be made.
    """
    errors = []
    for reading in readings(spec):
        try:
            return gym.make(reading, disable_env_checker=True, **options)
        except Exception as error:  # its constructor is anybody's code
            errors.append(error)
    raise refused(name, errors[0]) from errors[0]


def refused(name: str, error: Exception) -> UserError:
    """Return the error for an environment that is known and cannot be made."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"environment {name!r} cannot be made ({reason}); check its arguments and its packages")


def unknown(name: str) -> UserError:
    """Return the error that names the ids nearest to an unknown one."""
    return UserError(f"unknown environment {name!r}.{_nearest(name)}")


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, gym.registry.keys(), n=3, cutoff=0.6)
    if close:
        return f" Did you mean {' or '.join(repr(option) for option in close)}?"
    return " Give a registered Gymnasium id, package:Id-v0 where importing the package registers it, or module:Class."
