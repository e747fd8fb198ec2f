"""Builder methods made of settings: a key of a config file is one field of a dataclass, and nothing else.

`SettingsConfig` keeps the fields of its `parts` as flat attributes, and has a method for each section that takes them
as keywords, and those of RLlib's own keys that something reads.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE, NotProvided

from rayrl_dt.algorithms import rllib_keys
from rayrl_dt.algorithms.rllib_internals import RLlibConfig, refused
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.settings import Settings, attribute_of, described

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RENAMED", "SettingsConfig"]

RENAMED = {
    "optimiser": "optimizer",
    "normalise_q": "normalize_q",
    "action_regularisation": "action_regularization",
}
"""Keys of earlier versions, and what they are called now."""
_WIDTH = 110


class _Unchanged:
    """Stands for what is not given, in signatures: a preset's defaults are its own."""

    def __repr__(self) -> str:
        return "unchanged"


_UNCHANGED = _Unchanged()


class SettingsConfig(RLlibConfig):
    """An `AlgorithmConfig` whose own settings are dataclasses.

    Attributes:
        parts: the groups of settings, each of one section.
        derived: keys that other settings decide, with what to set instead.
    """

    parts: ClassVar[tuple[type[Settings], ...]] = ()
    derived: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for section in cls.sections():
            setattr(cls, section, _builder(cls, section))

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        for part in self.parts:
            for each in fields(part):
                setattr(self, attribute_of(each), each.default)

    @classmethod
    def sections(cls) -> list[str]:
        """Return the sections that a file may have, in no order that matters."""
        return list(dict.fromkeys([*rllib_keys.READ, *(part.section for part in cls.parts)]))

    @classmethod
    def own_fields(cls, section: str) -> dict[str, Field[Any]]:
        """Return the settings of a section by their keys."""
        parts = [part for part in cls.parts if part.section == section]
        return {
            each.name: each
            for part in parts
            for each in fields(part)
            if f"{section}.{each.name}" not in cls.derived
        }

    @classmethod
    def docs(cls, section: str) -> dict[str, str]:
        """Return what each setting of a section is."""
        found: dict[str, str] = {}
        for part in cls.parts:
            if part.section == section:
                found |= described(part)
        return {name: found[name] for name in cls.own_fields(section)}

    @classmethod
    def keywords(cls, section: str) -> tuple[str, ...]:
        """Return the keys of a section: the settings, then those of RLlib's own that are read."""
        own = tuple(cls.own_fields(section))
        return own + tuple(name for name in rllib_keys.READ.get(section, ()) if name not in own)

    def set_values(self, section: str, values: Mapping[str, Any]) -> Self:
        """Set keys of a section; values are checked in `validate`, for a search space may stand for one.

        Raises:
            UserError: nothing reads a key; what to set instead is named.
        """
        own, rllibs = self.own_fields(section), {}
        for name, value in values.items():
            if value is NotProvided:
                continue
            if name in own:
                setattr(self, attribute_of(own[name]), value)
            elif name in rllib_keys.READ.get(section, ()):
                rllibs[name] = value
            else:
                raise UserError(self._refusal(section, name, value))
        if rllibs:
            try:
                getattr(super(), section)(**rllibs)
            except (TypeError, ValueError, AttributeError) as error:
                raise refused(error) from error
        return self

    def _refusal(self, section: str, name: str, value: Any) -> str:
        """Return why a section has no such key."""
        key, new = f"{section}.{name}", RENAMED.get(name, name)
        if key in self.derived:
            return f"{key} is {value!r}, but {self.derived[key]}"
        rllibs = name in _rllib_keywords(section)
        homes = [f"{other}.{new}" for other in self.sections() if new in self.keywords(other)]
        if homes and new != name:
            return f"{key} is called {homes[0]} now; set that"
        if homes and not rllibs:
            return f"{key} has its place in another section; set {homes[0]}"
        if rllibs:
            return f"{key} is RLlib's, and nothing here reads it; {rllib_keys.remedy(section, name)}"
        return f"{section} has no key {name!r}.{suggest(name, self.keywords(section))}"

    def check_settings(self) -> None:
        """Check all settings; what a check makes of a value (1000 of 1e3) stays in the config.

        Raises:
            UserError: a value is not allowed.
        """
        for part in self.parts:
            settings = part.of(self)
            for each in fields(part):
                value = getattr(settings, each.name)
                if value is not getattr(self, attribute_of(each)):
                    setattr(self, attribute_of(each), value)
        rllib_keys.check(self)

    def fixed_settings(self) -> dict[str, Any]:
        """Return what must stay while a run goes on, by key; see `rayrl_dt.settings.setting`."""
        return {name: value for part in self.parts for name, value in part.of(self).fixed().items()}

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Self:
        """Take over values by their attributes, as Ray Tune hands them over.

        RLlib's own method passes some of them on to builders, and takes our `optimizer` for its own.
        """
        rllibs = {}
        for name, value in config_dict.items():
            if name in vars(self) and name != "env_config":
                setattr(self, name, value)
            else:
                rllibs[name] = value
        super().update_from_dict(rllibs)
        return self


def _rllib_keywords(section: str) -> dict[str, inspect.Parameter]:
    """Return the keywords of RLlib's builder, less those it has given up; none where the section is ours alone."""
    method = getattr(RLlibConfig, section, None)
    found = {} if method is None else inspect.signature(method).parameters
    return {name: each for name, each in found.items() if name != "self" and each.default != DEPRECATED_VALUE}


def _builder(cls: type[SettingsConfig], section: str) -> Callable[..., Any]:
    """Return the method of a section, with the signature and the docs of its keys."""
    rllibs = _rllib_keywords(section)
    places = [name for name, each in rllibs.items() if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    def build(self: SettingsConfig, /, *values: Any, **named: Any) -> SettingsConfig:
        return self.set_values(section, {**dict(zip(places, values, strict=False)), **named})

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    own = cls.own_fields(section)
    for name in cls.keywords(section):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if name in places else inspect.Parameter.KEYWORD_ONLY
        annotation = own[name].type if name in own else rllibs[name].annotation
        parameters.append(inspect.Parameter(name, kind, default=_UNCHANGED, annotation=annotation))
    parameters.sort(key=lambda each: each.kind)
    build.__name__, build.__qualname__ = section, f"{cls.__qualname__}.{section}"
    build.__module__, build.__doc__ = cls.__module__, _docstring(cls, section)
    build.__signature__ = inspect.Signature(parameters, return_annotation=cls.__name__)  # type: ignore[attr-defined]
    return build


def _docstring(cls: type[SettingsConfig], section: str) -> str:
    docs = cls.docs(section)
    lines = [f"Set the keys of section `{section}`.", "", "Args:"]
    for name in cls.keywords(section):
        what = docs.get(name, "RLlib's own.")
        lines += textwrap.wrap(f"{name}: {what}", _WIDTH, initial_indent="    ", subsequent_indent=" " * 8)
    lines += ["", "Raises:", "    UserError: nothing reads a key."]
    return "\n".join(lines)
