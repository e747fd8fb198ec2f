"""A config file with every key of an algorithm, its default and what it is, to be edited and trained."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rayrl_dt.cli.config_reference import Key, Section, reference
from rayrl_dt.runs.config_files import HEADER
from rayrl_dt.runs.quickstart import DATASET
from rayrl_dt.versions import package_versions

__all__ = ["template"]

_WIDTH = 110


def template(algorithm: str) -> str:
    """Return the file's text; as it stands it builds the config that a file without these keys builds.

    RLlib's own keys are commented out, and those that YAML cannot hold left out. The data set is an example, as there
    is no default.

    Raises:
        UserError: there is no such algorithm (the nearest is named).
    """
    version = package_versions().get("rayrl_dt", "(not installed)")
    lines = [
        f"# Every key of algorithm {algorithm} with its default in rayrl_dt {version}; a key left out keeps it.",
        "# None is null. Remove the # before a key to set it, and that before the name of its section.",
        "#   rayrl-dt train THIS_FILE",
        f"algorithm: {algorithm}",
    ]
    for name, description in HEADER.items():
        lines += [f"# {description}", f"#{name}:"]
    for section in reference(algorithm):
        lines += ["", *_section_lines(section)]
    return "\n".join(lines) + "\n"


def _section_lines(section: Section) -> Iterator[str]:
    writable = [key for key in section.keys if key.text is not None]
    # A sweep's settings make no sense without a space to search.
    active = [
        key
        for key in writable
        if key.ours and section.name != "tune" and not (key.inner and key.default is None)
    ]
    yield from _comment(section.description, "")
    yield f"{section.name}:" if active else f"#{section.name}:"
    for key in writable:
        yield from _key_lines(key, "  ", "" if key in active else "#")


def _key_lines(key: Key, indent: str, mark: str) -> Iterator[str]:
    yield from _comment(key.description, indent)
    if key.inner:
        yield f"{indent}{mark}{key.name}:"
        for inner in key.inner:
            yield from _key_lines(inner, f"{indent}  ", mark)
        return
    text = key.text
    if key.name == "dataset":
        yield from _comment("There is no default; this is an example.", indent)
        text = DATASET
    yield f"{indent}{mark}{key.name}: {text}"


def _comment(text: str, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=mark,
        break_long_words=False,
        break_on_hyphens=False,
    )
