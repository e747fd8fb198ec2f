"""Settings as frozen dataclasses: each field with its default and its check; its doc stands in the class's docstring.

A section of a config file is such a class, or several. RLlib's configs keep the fields as flat attributes of their own,
as Ray Tune and `AlgorithmConfig.to_dict` want them; `Settings.of` gathers and checks them where they are used.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from rayrl_dt.errors import UserError, number, one_of, suggest, truth, whole

__all__ = [
    "Check",
    "Settings",
    "as_number",
    "attribute_of",
    "automatic",
    "choice",
    "count",
    "described",
    "flag",
    "optional",
    "real",
    "refuse_unread",
    "setting",
    "text",
    "whole_value",
]

Check = Callable[[str, Any], Any]
"""Takes a name for messages and a value, and returns the value to keep or raises UserError."""
Kind = TypeVar("Kind", bound="Settings")


def setting(
    default: Any, check: Check, *, attribute: str | None = None, fixed: Callable[[Any], Any] | None = None
) -> Any:
    """Return a dataclass field with a default and a check.

    Args:
        default: the value without it.
        check: of the values.
        attribute: that a flat config keeps the value in, where the field's name is another section's too.
        fixed: what of the value must stay while a run goes on, since the shapes or scales of its weights, the groups
            of its optimizers, or what its counts mean, hang on it: `whole_value`, or a function of the value; None if
            nothing does.
    """
    return field(default=default, metadata={"check": check, "attribute": attribute, "fixed": fixed})


def whole_value(value: Any) -> Any:
    """Return the value: all of it is fixed."""
    return value


def attribute_of(each: Field[Any]) -> str:
    """Return the name under which a flat config keeps a field."""
    return each.metadata.get("attribute") or each.name


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


def text(what: str) -> Check:
    """Return the check of text or a path; `what` says what to write, for the message."""

    def check(name: str, value: Any) -> str:
        if isinstance(value, (str, os.PathLike)) and str(value):
            return str(value)
        raise UserError(f"{name} is {value!r}; it must be {what}")

    return check


def optional(check: Check) -> Check:
    """Return the same check where null is a value too."""
    return _beside(None, "null", check)


def automatic(check: Check) -> Check:
    """Return the same check where "auto", for what follows from the data, is a value too."""
    return _beside("auto", "auto", check)


def _beside(other: Any, written: str, check: Check) -> Check:
    def checked(name: str, value: Any) -> Any:
        try:
            return value if value == other else check(name, value)
        except UserError as error:
            end = f" Or {written}." if str(error).endswith((".", "?")) else f", or {written}"
            raise UserError(f"{error}{end}") from None

    return checked


def described(documented: Any, heading: str = "Attributes") -> dict[str, str]:
    """Return the names that a Google docstring describes under a heading, each with its text on one line.

    A group of settings that extends others need not describe what it has of them.
    """
    inherited: dict[str, str] = {}
    if isinstance(documented, type) and issubclass(documented, Settings):
        names = {each.name for each in fields(documented)}
        for group in reversed(documented.__mro__[1:]):
            if issubclass(group, Settings):
                found = _described(group, heading)
                inherited |= {name: words for name, words in found.items() if name in names}
    return {**inherited, **_described(documented, heading)}


def _described(documented: Any, heading: str) -> dict[str, str]:
    _, _, below = inspect.cleandoc(documented.__doc__ or "").partition(f"{heading}:\n")
    # The section ends where a line is not indented.
    section = re.split(r"^(?=\S)", below, maxsplit=1, flags=re.MULTILINE)[0]
    entries = (entry.partition(":") for entry in re.split(r"^ {4}(?=\S)", section, flags=re.MULTILINE)[1:])
    return {name: " ".join(words.split()) for name, _, words in entries}


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
        """Gather the settings from the attributes of a flat config, and check them.

        Raises:
            UserError: a value is not allowed.
        """
        return cls(**{each.name: getattr(config, attribute_of(each)) for each in fields(cls)})

    @classmethod
    def read(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """Build the settings from a mapping, as a config file has it; what is left out keeps its default.

        Numbers may be written as text, as on a command line.

        Raises:
            UserError: it is no mapping, a key is unknown (the nearest is named), or a value is not allowed.
        """
        if not isinstance(values, Mapping):
            example = ", ".join(f"{each.name}: {each.default}" for each in fields(cls)[:2])
            raise UserError(f"{cls.section} is {values!r}; write a mapping, such as {{{example}}}")
        known = {each.name: each for each in fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"{cls.section} has no key {key!r}.{suggest(str(key), known)}")
        return cls(**{key: as_number(value) for key, value in values.items()})

    @classmethod
    def parse(cls: type[Kind], words: str) -> Kind:
        """Read "eta=0.1,n=10", as a command line has it.

        Raises:
            UserError: it cannot be read, or see `read`.
        """
        values: dict[str, Any] = {}
        for part in words.split(","):
            key, found, value = (piece.strip() for piece in part.partition("="))
            if not found or not key or not value:
                example = ",".join(f"{each.name}={each.default}" for each in fields(cls)[:2])
                raise UserError(f"{cls.section} {words!r} cannot be read; write for instance {example}")
            values[key] = value
        return cls.read(values)

    def fixed(self) -> dict[str, Any]:
        """Return what must stay while a run goes on, by the settings' full names."""
        found = {each.name: each.metadata.get("fixed") for each in fields(self)}
        return {
            f"{self.section}.{name}": what(getattr(self, name))
            for name, what in found.items()
            if what is not None
        }

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def refuse_unread(
    part: type[Settings],
    config: object,
    *,
    because: str,
    remedy: str | None = None,
    names: Iterable[str] | None = None,
) -> None:
    """Refuse settings of a flat config that nothing reads, unless they have their defaults.

    Args:
        part: the settings' class.
        config: has the values.
        because: of what nothing reads them, as in "online.mode: sync".
        remedy: what else to do than remove it, as in "set mode: async"; None for nothing.
        names: those of the fields that nothing reads; None for all.

    Raises:
        UserError: naming the first.
    """
    chosen = None if names is None else set(names)
    for each in fields(part):
        value = getattr(config, attribute_of(each))
        if value != each.default and (chosen is None or each.name in chosen):
            raise UserError(
                f"{part.section}.{each.name} is {value!r}, and nothing reads it with {because}; remove it"
                + (f", or {remedy}" if remedy else "")
            )


def as_number(value: Any) -> Any:
    """Return text that is a number as one: YAML 1.1 reads 3e-4 as text."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
