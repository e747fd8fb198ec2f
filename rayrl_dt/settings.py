"""Settings as frozen dataclasses: each field with its default and its check; its doc stands in the class's docstring.

A section of a config file is such a class. RLlib's configs keep the fields as flat attributes of their own, as Ray Tune
and `AlgorithmConfig.to_dict` want them; `Settings.of` gathers and checks them where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from rayrl_dt.errors import number, one_of, truth, whole

__all__ = ["Check", "Settings", "choice", "count", "flag", "optional", "real", "setting"]

Check = Callable[[str, Any], Any]
"""Takes a name for messages and a value, and returns the value to keep or raises UserError."""
Kind = TypeVar("Kind", bound="Settings")


def setting(default: Any, check: Check) -> Any:
    """Return a dataclass field with a default and a check."""
    return field(default=default, metadata={"check": check})


def count(least: int = 0) -> Check:
    """Return the check of a whole number."""
    return lambda name, value: whole(name, value, least=least)


def real(**bounds: float) -> Check:
    """Return the check of a finite number; the bounds are those of `errors.number`."""
    return lambda name, value: number(name, value, **bounds)


def choice(*allowed: str) -> Check:
    """Return the check of one of some names."""
    return lambda name, value: one_of(name, value, allowed)


def flag() -> Check:
    """Return the check of a boolean."""
    return truth


def optional(check: Check) -> Check:
    """Return the same check where null is a value too."""
    return lambda name, value: None if value is None else check(name, value)


@dataclass(frozen=True)
class Settings:
    """A group of settings that belong together.

    Attributes:
        section: what stands before a field's name in messages, such as "online".

    Raises:
        UserError: a field's value is not allowed.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            check = each.metadata.get("check")
            if check is not None:
                name = f"{self.section}.{each.name}" if self.section else each.name
                object.__setattr__(self, each.name, check(name, getattr(self, each.name)))

    @classmethod
    def of(cls: type[Kind], config: object) -> Kind:
        """Gather the settings from the attributes of the same names, and check them.

        Raises:
            UserError: a value is not allowed.
        """
        return cls(**{each.name: getattr(config, each.name) for each in fields(cls)})
