"""Search spaces of a config file: leaves such as `{loguniform: [1e-5, 1e-3]}`, checked and handed to Ray Tune."""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rayrl_dt.errors import UserError, is_finite, suggest
from rayrl_dt.runs.config_files import SECTIONS, search_spaces
from rayrl_dt.settings import as_number

__all__ = ["KINDS", "Space", "find_spaces", "grid_points", "replaced", "value_at"]

KINDS = ("grid", "choice", "uniform", "loguniform", "randint", "quniform")
_LISTS = ("grid", "choice")


@dataclass(frozen=True)
class Space:
    """The values that one key of a config may take in a sweep.

    Attributes:
        path: dotted path of the key, `training.lr`.
        kind: one of `KINDS`.
        options: the values of "grid" (all are tried) and "choice" (drawn from); [low, high] of "uniform", "loguniform"
            and "randint" (high excluded, as in Ray); [low, high, step] of "quniform".
    """

    path: str
    kind: str
    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.listed:
            if not self.options:
                raise UserError(
                    f"{self.path} is an empty {self.kind}; list its values: {{{self.kind}: [1, 2]}}"
                )
            return
        numbers = 3 if self.kind == "quniform" else 2
        values = self.options
        if len(values) != numbers or not all(is_finite(value) for value in values):
            shape = "[low, high, step]" if numbers == 3 else "[low, high]"
            raise UserError(f"{self.path} is {{{self.kind}: {list(values)}}}; write {{{self.kind}: {shape}}}")
        if not values[0] < values[1]:
            raise UserError(
                f"{self.path} is an empty space, {values[0]} is not below {values[1]}; exchange or widen its bounds"
            )
        if self.kind == "loguniform" and values[0] <= 0:
            raise UserError(f"{self.path} is loguniform from {values[0]}; the lower bound must be positive")
        if self.kind == "randint" and not all(isinstance(value, int) for value in values):
            raise UserError(f"{self.path} is randint of {list(values)}; both bounds must be whole numbers")
        if self.kind == "quniform" and values[2] <= 0:
            raise UserError(f"{self.path} is quniform in steps of {values[2]}; the step must be positive")
        if self.kind == "quniform" and not all(
            math.isclose(v / values[2], round(v / values[2])) for v in values
        ):
            raise UserError(
                f"{self.path} is quniform from {values[0]} to {values[1]} in steps of {values[2]}; both bounds must be "
                "whole multiples of the step"
            )

    @property
    def listed(self) -> bool:
        """Whether its values are listed one by one."""
        return self.kind in _LISTS

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values that show whether the space fits its key: all listed ones, or both ends."""
        if self.listed:
            return self.options
        low, high = self.options[:2]
        return (low, high - 1) if self.kind == "randint" else (low, high)

    def domain(self) -> Any:
        """Return the space as Ray Tune knows it."""
        from ray import tune

        if self.kind == "grid":
            return tune.grid_search(list(self.options))
        if self.kind == "choice":
            return tune.choice(list(self.options))
        return getattr(tune, self.kind)(*self.options)

    @property
    def between(self) -> Any:
        """A value that may be drawn between its ends, no round one where it need not be; None for listed values."""
        if self.listed:
            return None
        low, high = self.options[:2]
        steps = {"randint": 1, "quniform": self.options[-1]}
        return low + (steps[self.kind] if self.kind in steps else (high - low) / math.pi)

    def clipped(self, value: Any) -> Any:
        """Return `value` on the nearest step, or the bound that it has crossed; PBT multiplies without looking."""
        if self.listed:
            return value
        low, high = self.edges
        if self.kind == "randint":
            value = round(value)
        elif self.kind == "quniform":
            step = self.options[2]
            value = round(value / step) * step
        return min(max(value, low), high)


def find_spaces(values: Mapping[str, Any]) -> tuple[Space, ...]:
    """Return the search spaces of a config file.

    Raises:
        UserError: one is empty, malformed, or of an unknown kind.
    """
    for path, name, options in _lonely_lists({key: values[key] for key in values if key in SECTIONS}, ""):
        if name not in KINDS and difflib.get_close_matches(name, KINDS, n=1, cutoff=0.75):
            raise UserError(
                f"{path} is {{{name}: {options}}}, which is no search space.{suggest(name, KINDS)}"
            )
    found = []
    for path in search_spaces(values):
        ((kind, options),) = value_at(values, path).items()
        if not isinstance(options, (list, tuple)):
            raise UserError(
                f"{path} is {{{kind}: {options!r}}}; a space lists its values, as {{{kind}: [1, 2]}}"
            )
        found.append(Space(path, kind, tuple(map(as_number, options))))
    return tuple(found)


def grid_points(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of the listed values of a file's spaces, by dotted path; one without any is empty.

    Raises:
        UserError: a space is wrong, or does not list its values.
    """
    spaces = find_spaces(values)
    for space in spaces:
        if not space.listed:
            raise UserError(
                f"{space.path} is a {space.kind} space; to compare some of its values list them: {{grid: [...]}}"
            )
    paths = [space.path for space in spaces]
    products = itertools.product(*(space.options for space in spaces))
    return [dict(zip(paths, point, strict=True)) for point in products]


def value_at(values: Any, path: str) -> Any:
    """Return the value at a dotted path; None where the path ends early."""
    for key in path.split("."):
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def replaced(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `values` with the value at each dotted path exchanged, its sections made where missing."""
    result = copy.deepcopy(dict(values))
    for path, value in changes.items():
        *sections, key = path.split(".")
        target = result
        for section in sections:
            if target.get(section) is None:
                target[section] = {}
            target = target[section]
        target[key] = value
    return result


def _lonely_lists(node: Any, path: str) -> Iterator[tuple[str, str, list[Any]]]:
    """Return mappings that look like a space: one key, and a list behind it."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        inner = f"{path}.{key}" if path else str(key)
        if len(node) == 1 and isinstance(value, list):
            yield path, str(key), value
        yield from _lonely_lists(value, inner)
