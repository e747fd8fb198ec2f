"""Specifications of Gymnasium's as text, with what a text can hold of them.

JSON makes lists of tuples and of arrays, and some environments and wrappers take nothing else. So these are marked in
texts: `{"tuple": [84, 84]}` and `{"array": [-1.0], "dtype": "float32"}`. Texts of others have lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.errors import UserError, one_line

__all__ = [
    "code_of",
    "lettered",
    "numbered",
    "readings",
    "restored",
    "spec_of_text",
    "spec_text",
    "unmarked",
    "writable",
    "written",
]

_FLOAT = "float"
"""Stands for a number that JSON does not have: `{"float": "inf"}`."""

_TUPLE, _ARRAY, _DTYPE = "tuple", "array", "dtype"
_DTYPES = (
    "bool",
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


def spec_text(spec: EnvSpec) -> str:
    """Return a specification as JSON; see `writable`."""
    return writable(spec).to_json()


def writable(spec: EnvSpec) -> EnvSpec:
    """Return what a text can hold of a specification.

    Classes go by their names, tuples and arrays are marked as such. Arguments of wrappers that no text can hold, such
    as functions, count as not recorded: the environment is known then, and cannot be made again.

    Raises:
        UserError: an argument of the environment itself is such.
    """
    kwargs = {}
    for name, value in spec.kwargs.items():
        try:
            kwargs[name] = written(value)
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


def written(value: Any) -> Any:
    """Return an argument as a text holds it; one that is so already stays as it is.

    Raises:
        TypeError: no text can hold it.
    """
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.name in _DTYPES:
        return {_ARRAY: value.tolist(), _DTYPE: value.dtype.name}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):
        return [written(each) for each in value]
    if isinstance(value, tuple):
        return {_TUPLE: [written(each) for each in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: written(each) for key, each in value.items()}
    raise TypeError(f"{value!r} cannot be written")


def restored(value: Any) -> Any:
    """Inverse of `written`.

    Raises:
        ValueError, TypeError, OverflowError: what is marked as an array is none.
    """
    if isinstance(value, dict):
        if _is_tuple(value):
            return tuple(map(restored, value[_TUPLE]))
        if _is_array(value):
            return np.array(value[_ARRAY], value[_DTYPE])
        return {key: restored(each) for key, each in value.items()}
    return [restored(each) for each in value] if isinstance(value, list) else value


def unmarked(spec: EnvSpec) -> EnvSpec:
    """Return what a text for others can hold of a specification: tuples and arrays are lists.

    Raises:
        UserError: see `writable`.
    """
    return _changed(writable(spec), _listed)


def readings(spec: EnvSpec) -> Iterator[EnvSpec]:
    """Yield a specification, and where it has lists also those with tuples and with arrays in their place.

    Texts that others wrote have lists for all three.
    """
    yield spec
    for sequence in (tuple, np.array):
        other = _changed(spec, partial(_with_lists_as, sequence))
        if repr(other) != repr(spec):
            yield other


def _changed(spec: EnvSpec, change: Callable[[Any], Any]) -> EnvSpec:
    wrappers = tuple(replace(each, kwargs=change(each.kwargs)) for each in spec.additional_wrappers)
    return replace(spec, kwargs=change(spec.kwargs), additional_wrappers=wrappers)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        if _is_tuple(value):
            return _listed(value[_TUPLE])
        return value[_ARRAY] if _is_array(value) else {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list) else value


def _with_lists_as(sequence: Callable[[list[Any]], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists_as(sequence, each) for key, each in value.items()}
    return sequence([_with_lists_as(sequence, each) for each in value]) if isinstance(value, list) else value


def _arguments(kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    try:
        return None if kwargs is None else {name: written(value) for name, value in kwargs.items()}
    except TypeError:
        return None


def _is_tuple(value: dict[str, Any]) -> bool:
    return value.keys() == {_TUPLE} and isinstance(value[_TUPLE], list)


def _is_array(value: dict[str, Any]) -> bool:
    return value.keys() == {_ARRAY, _DTYPE} and value[_DTYPE] in _DTYPES and isinstance(value[_ARRAY], list)
