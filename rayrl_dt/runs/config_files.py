"""YAML files as configs: sections are the config's builder methods, so there is no second schema."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE

from rayrl_dt.algorithms.baselines.cql import CQLConfig
from rayrl_dt.algorithms.baselines.iql import IQLConfig
from rayrl_dt.algorithms.baselines.td3bc import TD3BCConfig
from rayrl_dt.algorithms.bc import BCConfig
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.dt import DTConfig
from rayrl_dt.algorithms.online.algorithm import OnlineDTConfig
from rayrl_dt.algorithms.radt import RADTConfig
from rayrl_dt.algorithms.reinformer import ReinformerConfig
from rayrl_dt.errors import UserError, suggest

__all__ = [
    "ALGORITHMS",
    "HEADER",
    "SECTIONS",
    "apply_overrides",
    "build_config",
    "keywords",
    "read_yaml",
    "search_spaces",
]

ALGORITHMS: dict[str, type[SequenceConfig]] = {
    "DT": DTConfig,
    "RADT": RADTConfig,
    "BC": BCConfig,
    "Reinformer": ReinformerConfig,
    "OnlineDT": OnlineDTConfig,
    "TD3BC": TD3BCConfig,
    "IQL": IQLConfig,
    "CQL": CQLConfig,
}
SECTIONS = (
    "environment",
    "offline_data",
    "rl_module",
    "training",
    "online",
    "env_runners",
    "learners",
    "evaluation",
    "fault_tolerance",
    "debugging",
)
HEADER = {
    "name": "of the run in reports; the algorithm by default",
    "description": "for readers of the file; nothing else reads it",
}
"""The keys beside `algorithm` and the sections, and what each is."""
_TOP_LEVEL = ("algorithm", *HEADER, *SECTIONS, "tune")
_SPACES = ("grid", "choice", "uniform", "loguniform", "randint", "quniform")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        UserError: the file is missing or is not a YAML mapping.
    """
    file = Path(path)
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        what = f"cannot read {file} ({error.strerror})"
        raise UserError(f"{what}; name a YAML file, as in tune_configs/") from error
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise UserError(f"{file} is not valid YAML: {line}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold a mapping of sections ({', '.join(SECTIONS)})")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with `section.key=value` assignments applied; values are YAML.

    Raises:
        UserError: an override cannot be read.
    """
    result = copy.deepcopy(dict(values))
    for override in overrides:
        path, found, text = override.partition("=")
        keys = path.strip().split(".")
        if not found or not all(keys):
            raise UserError(f"--set {override!r} cannot be read; write section.key=value (training.lr=3e-4)")
        target: Any = result
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {override!r}: {key} is a value, not a section")
        target[keys[-1]] = _scalar(text)
    return result


def build_config(values: Mapping[str, Any]) -> SequenceConfig:
    """Build and validates the config of a file.

    Raises:
        UserError: an algorithm, section or key is unknown (the nearest is named), or a value is out of range.
    """
    if "variants" in values:
        raise UserError("this file describes several methods (variants); compare them with rayrl-dt align")
    if "run" in values:
        raise UserError(
            "this file evaluates a trained run (run); search its action gradient with rayrl-dt tune"
        )
    for key in values:
        if key not in _TOP_LEVEL:
            raise UserError(f"unknown section {key!r}.{suggest(key, _TOP_LEVEL)}")
    name = values.get("algorithm")
    if name not in ALGORITHMS:
        raise UserError(f"algorithm is {name!r}.{suggest(str(name), ALGORITHMS)}")
    spaces = search_spaces(values)
    if spaces:
        raise UserError(
            f"{spaces[0]} is a search space, a single run needs one value; set it with --set {spaces[0]}=VALUE"
        )
    config = ALGORITHMS[name]()
    for section in SECTIONS:
        settings = values.get(section)
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise UserError(f"section {section} must be a mapping, it is {settings!r}")
        method = getattr(config, section, None)
        if method is None:
            raise UserError(
                f"algorithm {name} has no section {section!r}; online finetuning is algorithm: OnlineDT"
            )
        known = keywords(type(config), section)
        for key in settings:
            if key not in known and key not in config.derived:  # whose setter says what to set instead
                raise UserError(f"{section} has no key {key!r}.{suggest(key, known)}")
        method(**{key: _number(value) for key, value in settings.items()})
    config.validate()
    return config


def keywords(config: type[SequenceConfig], section: str) -> dict[str, type]:
    """Return the keyword arguments of a builder method, each with the class whose method declares it.

    The most derived class comes first, RLlib last. Left out: what RLlib has deprecated (it warns, or fails), and what
    the algorithm derives from other keys.
    """
    found: dict[str, type] = {}
    for base in config.__mro__:
        method = base.__dict__.get(section)
        for parameter in inspect.signature(method).parameters.values() if method is not None else ():
            named = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if (
                named
                and parameter.name not in ("self", *config.derived)
                and parameter.default != DEPRECATED_VALUE
            ):
                found.setdefault(parameter.name, base)
    return found


def search_spaces(values: Mapping[str, Any]) -> list[str]:
    """Return the dotted paths of the search spaces in a file."""
    found: list[str] = []

    def visit(node: Any, path: str) -> None:
        if not isinstance(node, dict):
            return
        if len(node) == 1 and next(iter(node)) in _SPACES:
            found.append(path)
            return
        for key, value in node.items():
            visit(value, f"{path}.{key}" if path else str(key))

    visit({key: value for key, value in values.items() if key in SECTIONS}, "")
    return found


def _scalar(text: str) -> Any:
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 as text; here it is a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
