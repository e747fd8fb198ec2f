"""The software: Python, the packages and extras, and whether simulators run."""

from __future__ import annotations

import importlib
import platform
from contextlib import closing
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayrl_dt.doctor.check import PACKAGE, Check

__all__ = ["atari", "extras", "mujoco", "packages", "python"]

_DEVELOPMENT_EXTRAS = ("dev", "test")


def python() -> list[Check]:
    """Check whether the package supports this Python."""
    version = platform.python_version()
    bounds = metadata.metadata(PACKAGE)["Requires-Python"] or ""
    found = f"{version} on {platform.platform(terse=True)}"
    if SpecifierSet(bounds).contains(version, prereleases=True):
        return [Check("Python", "ok", found)]
    return [Check("Python", "error", found, f"install a Python {bounds}")]


def packages() -> list[Check]:
    """Check every required package."""
    checks = [Check(PACKAGE, "ok", metadata.version(PACKAGE))]
    for requirement in _requirements():
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        problem, found = _installed(requirement)
        if problem:
            checks.append(Check(requirement.name, "error", found, f"pip install '{_plain(requirement)}'"))
        else:
            checks.append(Check(requirement.name, "ok", found))
    return checks


def extras() -> list[Check]:
    """Check every extra that users may want; none of them is needed."""
    checks = []
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        if extra in _DEVELOPMENT_EXTRAS:
            continue
        wanted = [
            requirement
            for requirement in _requirements()
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
        ]
        results = [_installed(requirement) for requirement in wanted]
        found = ", ".join(text for _, text in results)
        if any(problem for problem, _ in results):
            remedy = f"only if you need it: pip install '{PACKAGE}[{extra}]'"
            checks.append(Check(f"extra {extra}", "warning", found, remedy))
        else:
            checks.append(Check(f"extra {extra}", "ok", found))
    return checks


def mujoco() -> list[Check]:
    """Check whether a MuJoCo environment runs."""
    from rayrl_dt import envs

    with closing(envs.make("Hopper-v5")) as env:
        env.reset(seed=0)
        env.step(env.action_space.sample())
    return [Check("MuJoCo", "ok", f"Hopper-v5 runs on mujoco {metadata.version('mujoco')}")]


def atari() -> list[Check]:
    """Check whether the Arcade Learning Environment is there."""
    importlib.import_module("ale_py")
    return [Check("Atari", "ok", f"ale-py {metadata.version('ale-py')}")]


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(PACKAGE) or []]


def _installed(requirement: Requirement) -> tuple[bool, str]:
    """Return whether there is a problem, and what is installed."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return True, f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return True, f"{requirement.name} {version}, which is outside {requirement.specifier}"
    return False, f"{requirement.name} {version}"


def _plain(requirement: Requirement) -> str:
    """Return the requirement as pip takes it, without its marker."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"
