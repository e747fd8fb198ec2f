"""YAML files as configs: sections are the config's builder methods, so there is no second schema."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.algorithms.baselines.cql import CQLConfig
from rayrl_dt.algorithms.baselines.iql import IQLConfig
from rayrl_dt.algorithms.baselines.td3bc import TD3BCConfig
from rayrl_dt.algorithms.bc import BCConfig
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.dt import DTConfig
from rayrl_dt.algorithms.online.algorithm import OnlineDTConfig
from rayrl_dt.algorithms.radt import RADTConfig
from rayrl_dt.algorithms.reinformer import ReinformerConfig
from rayrl_dt.errors import UserError, one_of, suggest
from rayrl_dt.runs.shipped_configs import config_path
from rayrl_dt.settings import as_number

__all__ = [
    "ALGORITHMS",
    "HEADER",
    "SECTIONS",
    "apply_overrides",
    "build_config",
    "differences",
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
_DEEPEST, _LARGEST = 20, 10_000
_SPACES = ("grid", "choice", "uniform", "loguniform", "randint", "quniform")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a config file, or the shipped one of that name; see `config_path`.

    Raises:
        UserError: the file is missing, is no YAML mapping, or says a key twice.
    """
    file = config_path(path)
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # a safe loader
        _check_tree(values)
    except OSError as error:
        what = f"cannot read {file} ({error.strerror})"
        raise UserError(
            f"{what}; name a YAML file, or one that comes with the package: rayrl-dt configs list"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{file} is not valid YAML: {line}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold a mapping of sections ({', '.join(SECTIONS)})")
    return values


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that stands twice; dates stay text."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Read a mapping.

        Raises:
            ComposerError: a key stands there twice; YAML would keep the last one in silence.
        """
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                mark = key.start_mark
                raise yaml.composer.ComposerError(None, None, f"key {name!r} stands twice; remove one", mark)
            seen.add(name)
        return node


# A table of its own: all loaders share their parent's.
_Loader.yaml_implicit_resolvers = {
    first: [found for found in resolvers if found[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_tree(values: Any, depth: int = 0) -> int:
    """Return the number of values in a file's content, of which anchors can make any number.

    Raises:
        ValueError: it is deeper or larger than any config is.
    """
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    found = 1
    for each in inner:
        if depth > _DEEPEST or found > _LARGEST:
            raise ValueError(
                f"it holds more than {_LARGEST} values, or a mapping in itself; write values out"
            )
        found += _check_tree(each, depth + 1)
    return found


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


def differences(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which contents of files differ: both values by `section.key`, None for none."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*values, *(key for key in others if key not in values)]:
        one, other = values.get(key), others.get(key)
        if all(value is None or isinstance(value, Mapping) for value in (one, other)):
            inner = differences(one or {}, other or {})
            found |= {f"{key}.{name}": pair for name, pair in inner.items()}
        elif one != other:
            found[str(key)] = one, other
    return found


def build_config(values: Mapping[str, Any]) -> SequenceConfig:
    """Build and validate the config of a file.

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
    name = one_of("algorithm", values.get("algorithm"), ALGORITHMS)
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
        if section not in config.sections():
            raise UserError(
                f"algorithm {name} has no section {section!r}; online finetuning is algorithm: OnlineDT"
            )
        config.set_values(section, {str(key): as_number(value) for key, value in settings.items()})
    config.validate()
    return config


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
        return as_number(yaml.load(text, _Loader))
    except (yaml.YAMLError, ValueError):
        return text
