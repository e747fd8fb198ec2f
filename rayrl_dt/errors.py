"""Errors that a user can act on: what is wrong, what is allowed, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["TrainingDiverged", "UserError", "suggest"]


class UserError(ValueError):
    """Bad input. The message is one line and ends with the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


class TrainingDiverged(RuntimeError):
    """A loss or gradient became NaN or infinite; the last checkpoint is still good."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the allowed name nearest to `name`, or the allowed names."""
    options = sorted(str(option) for option in allowed)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Allowed: {', '.join(options)}."
