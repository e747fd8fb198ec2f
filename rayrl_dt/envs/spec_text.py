"""Specifications of Gymnasium's as text, with what a text can hold of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.errors import UserError, one_line

__all__ = ["code_of", "lettered", "numbered", "spec_of_text", "spec_text", "writable"]

_FLOAT = "float"
"""Stands for a number that JSON does not have: `{"float": "inf"}`."""


def spec_text(spec: EnvSpec) -> str:
    """Return a specification as JSON; see `writable`."""
    return writable(spec).to_json()


def writable(spec: EnvSpec) -> EnvSpec:
    """Return what a text can hold of a specification.

    Classes go by their names, arrays are lists. Arguments of wrappers that no text can hold, such as functions, count
    as not recorded: the environment is known then, and cannot be made again.

    Raises:
        UserError: an argument of the environment itself is such.
    """
    kwargs = {}
    for name, value in spec.kwargs.items():
        try:
            kwargs[name] = _plain(value)
        except TypeError as error:
            raise UserError(
                f"the environment {spec.id} was made with {name}={value!r}, which no file can hold; register one that "
                "is made so by itself, with numbers, texts and lists as arguments"
            ) from error
    wrappers = tuple(replace(each, kwargs=_arguments(each.kwargs)) for each in spec.additional_wrappers)
    vector = spec.vector_entry_point
    return replace(
        spec,
        entry_point=code_of(spec.entry_point),
        vector_entry_point=vector if isinstance(vector, str) else None,
        kwargs=kwargs,
        additional_wrappers=wrappers,
    )


def spec_of_text(text: str) -> EnvSpec:
    """Read a specification that the user gives.

    Raises:
        UserError: it is none.
    """
    try:
        return EnvSpec.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"not an environment specification ({one_line(error)}); give an id such as Hopper-v5, or the output of "
            "env.spec.to_json()"
        ) from error


def code_of(code: Any) -> str | None:
    """Return `module:name` of an entry point; None where it has none, as a lambda."""
    if code is None or isinstance(code, str):
        return code
    module, name = getattr(code, "__module__", None), getattr(code, "__qualname__", ".")
    return None if module is None or not name.isidentifier() else f"{module}:{name}"


def lettered(value: Any) -> Any:
    """Return arguments as JSON to the letter, which has no infinities and no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if isinstance(value, list | tuple):
        return [lettered(each) for each in value]
    return {key: lettered(each) for key, each in value.items()} if isinstance(value, dict) else value


def numbered(value: Any) -> Any:
    """Inverse of `lettered`."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT} and value[_FLOAT] in ("inf", "-inf", "nan"):
            return float(value[_FLOAT])
        return {key: numbered(each) for key, each in value.items()}
    return [numbered(each) for each in value] if isinstance(value, list) else value


def _arguments(kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    try:
        return None if kwargs is None else {name: _plain(value) for name, value in kwargs.items()}
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        # A file makes lists of both, but in this process some environments ask for a tuple.
        return [_plain(each) for each in value] if isinstance(value, list) else tuple(map(_plain, value))
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(each) for key, each in value.items()}
    raise TypeError(f"{value!r} cannot be written")
