"""One result of the diagnosis, and what all checks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rayrl_dt.errors import one_line

__all__ = ["GIB", "PACKAGE", "Check", "Status", "guarded", "size", "verdict"]

Status = Literal["ok", "warning", "error"]

PACKAGE = "rayrl_dt"
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: "ok", "warning" (works, but not for everything or not well) or "error".
        found: what is there, in one line.
        remedy: what to do, in one line; None if nothing.
    """

    name: str
    status: Status
    found: str
    remedy: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def verdict(name: str, found: str, *, good: bool, remedy: str, otherwise: Status = "warning") -> list[Check]:
    """Return the result of a check that is fine, or else a warning or an error with a remedy."""
    return [Check(name, "ok", found) if good else Check(name, otherwise, found, remedy)]


def guarded(name: str, check: Callable[[], list[Check]], remedy: str) -> list[Check]:
    """Run a check and return its results; an exception is a result too."""
    try:
        return check()
    except Exception as error:  # whatever a broken installation raises
        return [Check(name, "error", one_line(error), remedy)]


def size(count: float) -> str:
    """Return a number of bytes in words, as "3.1 GiB"."""
    return f"{count / GIB:.1f} GiB"
