"""Errors that a user can act on, and the checks that raise them: the value, what is allowed, and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

__all__ = [
    "EnvironmentFailed",
    "TrainingDiverged",
    "UserError",
    "is_finite",
    "number",
    "one_line",
    "one_of",
    "suggest",
    "truth",
    "whole",
]


class UserError(ValueError):
    """Bad input. The message is one line and ends with the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


class EnvironmentFailed(UserError):
    """An environment raised something, or returned what no environment returns."""


class TrainingDiverged(RuntimeError):
    """A loss or gradient became NaN or infinite; the last checkpoint is still good."""


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the allowed name nearest to `name`, or the allowed names."""
    options = sorted(str(option) for option in allowed)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Allowed: {', '.join(options)}."


def whole(name: str, value: Any, *, least: int | None = 0, most: int | None = None) -> int:
    """Return a whole number as an int, also where it came as 1e3.

    Args:
        name: what the message calls it, for instance "training.gradient_steps".
        value: what was given.
        least: the lowest allowed value; None for no bound.
        most: the highest allowed value; None for no bound.

    Raises:
        UserError: it is not a whole number, or out of range.
    """
    real = is_finite(value)
    if real and value == int(value) and (least is None or value >= least) and (most is None or value <= most):
        return int(value)
    bounds = f" of at least {least}" if most is None else f" from {least} to {most}"
    near = f", for instance {max(round(value), least or 0)}" if real and most is None else ""
    raise UserError(f"{name} is {value!r}; it must be a whole number{'' if least is None else bounds}{near}")


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Return a finite number within bounds, as it was given; the bounds are inclusive or exclusive by their names.

    Raises:
        UserError: it is not a finite number, or out of range.
    """
    real = is_finite(value)
    inside = real and not (
        (least is not None and value < least)
        or (above is not None and value <= above)
        or (most is not None and value > most)
        or (below is not None and value >= below)
    )
    if inside:
        return value  # type: ignore[no-any-return]
    parts = (("of at least", least), ("above", above), ("of at most", most), ("below", below))
    bounds = " and ".join(f"{word} {bound:g}" for word, bound in parts if bound is not None)
    raise UserError(f"{name} is {value!r}; it must be a finite number{bounds and ' '}{bounds}")


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number; a boolean is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return a value that is one of some names.

    Raises:
        UserError: it is none of them (the nearest is named).
    """
    options = tuple(allowed)
    if isinstance(value, str) and value in options:
        return value
    raise UserError(f"{name} is {value!r}.{suggest(str(value), options)}")


def truth(name: str, value: Any) -> bool:
    """Return a boolean.

    Raises:
        UserError: it is something else, such as the text "no".
    """
    if isinstance(value, bool):
        return value
    raise UserError(f"{name} is {value!r}; it must be true or false")
