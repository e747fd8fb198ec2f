"""Every key that a config file may have, as the code has it: signatures, docstrings, and the defaults of a config."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.runs.config_files import ALGORITHMS, SECTIONS, keywords
from rayrl_dt.tuning.settings import Settings

__all__ = ["Key", "Section", "reference", "summaries"]

# Keys whose value the config keeps under another name than their own.
_ATTRIBUTES = {
    ("training", "critic_from"): "objective_critic",
    ("evaluation", "dataset_num_iters_per_offline_eval_runner"): "dataset_num_iters_per_eval_runner",
}
_LONGEST_SENTENCE = 200
_MAPPINGS = {"action_gradient": ActionGradient, "sampled_actions": SampledActions}
"""Keys that take a mapping, and what reads it. The other one, `model_config`, is read by the config itself."""


@dataclass(frozen=True)
class Key:
    """A key of a section.

    Attributes:
        name: as a config file has it.
        default: the value without it.
        description: of ours as the code has it; of RLlib's the first sentence, or nothing if it says nothing.
        attribute: of the config, that the key sets.
        ours: declared here, or RLlib's and named by the setter here; the others are RLlib's own.
        inner: the keys of the mapping that it takes.
    """

    name: str
    default: Any
    description: str
    attribute: str
    ours: bool
    inner: tuple[Key, ...] = ()

    @property
    def text(self) -> str | None:
        """The default as YAML on one line, or None if YAML cannot hold it (a class, a function)."""
        try:
            text = yaml.safe_dump(self.default, default_flow_style=True, width=float("inf"), sort_keys=False)
        except yaml.representer.RepresenterError:
            return None
        # A document that is one plain value ends with dots.
        return text.removesuffix("\n").removesuffix("\n...")


@dataclass(frozen=True)
class Section:
    """A section: its name, what its setter does, and its keys, ours first."""

    name: str
    description: str
    keys: tuple[Key, ...]


def reference(algorithm: str) -> list[Section]:
    """Return the sections of an algorithm, in the order of a config file; the last one is `tune`.

    Raises:
        UserError: there is no such algorithm (the nearest is named).
    """
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm is {algorithm!r}.{suggest(algorithm, ALGORITHMS)}")
    config = ALGORITHMS[algorithm]()
    sections = [_section(config, name) for name in SECTIONS if hasattr(config, name)]
    return [*sections, Section("tune", _summary(Settings), _fields(Settings()))]


def summaries() -> dict[str, str]:
    """Return what each algorithm is, in a line."""
    return {name: _summary(config) for name, config in ALGORITHMS.items()}


def _section(config: SequenceConfig, section: str) -> Section:
    declared = keywords(type(config), section)
    described: dict[type, dict[str, str]] = {}
    for owner in type(config).__mro__:
        if section in owner.__dict__:
            described[owner] = dict(_entries(owner.__dict__[section].__doc__, "Args"))
    named = {
        name
        for owner, entries in described.items()
        if _is_ours(owner)
        for name in re.findall(r"`(\w+)`", entries.get("**kwargs", ""))
    }
    keys = []
    for name, owner in declared.items():
        text = described[owner].get(name, "")
        attribute = _ATTRIBUTES.get((section, name), name)
        inner: tuple[Key, ...] = ()
        if name == "model_config":
            # What a file would have to say: `sequence_model` has already decided what hangs on the algorithm.
            model = ModelConfig.from_dict(config.model_defaults)
            default: Any = dataclasses.asdict(model)
            text, inner = _summary(ModelConfig), _fields(model)
        else:
            values = vars(config)
            default = values[attribute] if attribute in values else values[f"_{attribute}"]
            if name in _MAPPINGS:
                inner = _fields(_MAPPINGS[name]())
        ours = _is_ours(owner) or name in named or name == "model_config"
        text = text if _is_ours(owner) else _first_sentence(text)
        keys.append(Key(name, default, text, attribute, ours, inner))
    keys.sort(key=lambda key: not key.ours)
    return Section(section, _summary(getattr(config, section)), tuple(keys))


def _fields(values: Any) -> tuple[Key, ...]:
    """Return the fields of a dataclass that reads a mapping, with the values of this one as defaults."""
    described = dict(_entries(type(values).__doc__, "Attributes"))
    return tuple(
        Key(field.name, getattr(values, field.name), described[field.name], field.name, ours=True)
        for field in dataclasses.fields(values)
    )


def _is_ours(owner: type) -> bool:
    return owner.__module__.startswith("rayrl_dt.")


def _summary(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "").partition("\n")[0]


def _first_sentence(text: str) -> str:
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]
    return textwrap.shorten(sentence, _LONGEST_SENTENCE, placeholder=" ...")


def _entries(docstring: str | None, heading: str) -> Iterator[tuple[str, str]]:
    """Return the names that a docstring describes under a heading, each with its text on one line."""
    _, _, below = inspect.cleandoc(docstring or "").partition(f"{heading}:\n")
    # The section ends where a line is not indented.
    section = re.split(r"^(?=\S)", below, maxsplit=1, flags=re.MULTILINE)[0]
    for entry in re.split(r"^ {4}(?=\S)", section, flags=re.MULTILINE)[1:]:
        name, _, text = entry.partition(":")
        yield name, " ".join(text.split())
