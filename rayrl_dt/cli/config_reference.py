"""Every key that a config file may have, as the code has it: the fields of settings, and the defaults of a config."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import yaml
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.runs.config_files import ALGORITHMS, SECTIONS
from rayrl_dt.settings import attribute_of, described
from rayrl_dt.tuning.settings import TuneSettings

__all__ = ["Key", "Section", "reference", "summaries"]

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
        ours: a setting of ours, or the model's; the others are RLlib's own.
        inner: the keys of the mapping that it takes.
    """

    name: str
    default: Any
    description: str
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
    sections = [_section(config, name) for name in SECTIONS if name in config.sections()]
    return [*sections, Section("tune", _summary(TuneSettings), _fields(TuneSettings()))]


def summaries() -> dict[str, str]:
    """Return what each algorithm is, in a line."""
    return {name: _summary(config) for name, config in ALGORITHMS.items()}


def _section(config: SequenceConfig, section: str) -> Section:
    own, docs = config.own_fields(section), config.docs(section)
    rllibs = described(getattr(AlgorithmConfig, section, None), "Args")
    keys = []
    for name in config.keywords(section):
        if name == "model_config":
            # What a file would have to say: `sequence_model` has already decided what hangs on the algorithm.
            model = ModelConfig.from_dict(config.model_defaults)
            keys.append(Key(name, dataclasses.asdict(model), _summary(ModelConfig), True, _fields(model)))
            continue
        attribute = attribute_of(own[name]) if name in own else name
        values = vars(config)
        default = values[attribute] if attribute in values else values[f"_{attribute}"]
        inner = _fields(_MAPPINGS[name]()) if name in _MAPPINGS else ()
        text = docs[name] if name in own else _first_sentence(rllibs.get(name, ""))
        keys.append(Key(name, default, text, name in own, inner))
    return Section(section, _summary(getattr(config, section)), tuple(keys))


def _fields(values: Any) -> tuple[Key, ...]:
    """Return the fields of a dataclass that reads a mapping, with the values of this one as defaults."""
    docs = described(type(values))
    return tuple(
        Key(field.name, getattr(values, field.name), docs[field.name], ours=True)
        for field in dataclasses.fields(values)
    )


def _summary(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "").partition("\n")[0]


def _first_sentence(text: str) -> str:
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]
    return textwrap.shorten(sentence, _LONGEST_SENTENCE, placeholder=" ...")
