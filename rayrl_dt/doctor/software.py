"""The software: Python, the packages and extras, and whether simulators run."""

from __future__ import annotations

import importlib
import platform
from contextlib import closing
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayrl_dt.doctor.check import PACKAGE, Check, verdict

__all__ = ["atari", "extras", "mujoco", "packages", "python"]

_DEVELOPMENT_EXTRAS = ("dev", "docs", "test")


def python() -> list[Check]:
    """Check whether the package supports this Python."""
    version = platform.python_version()
    bounds = metadata.metadata(PACKAGE)["Requires-Python"] or ""
    found = f"{version} on {platform.platform(terse=True)}"
    good = SpecifierSet(bounds).contains(version, prereleases=True)
    return verdict("Python", found, good=good, remedy=f"install a Python {bounds}", otherwise="error")


def packages() -> list[Check]:
    """Check every required package."""
    checks = [Check(PACKAGE, "ok", metadata.version(PACKAGE))]
    for requirement in _requirements(""):
        good, found = _installed(requirement)
        remedy = f"pip install '{_plain(requirement)}'"
        checks += verdict(requirement.name, found, good=good, remedy=remedy, otherwise="error")
    return checks


def extras() -> list[Check]:
    """Check every extra that users may want; none of them is needed."""
    checks = []
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        if extra in _DEVELOPMENT_EXTRAS:
            continue
        required = list(map(str, _requirements("")))
        results = [_installed(each) for each in _requirements(extra) if str(each) not in required]
        found = ", ".join(text for _, text in results)
        remedy = f"only if you need it: pip install '{PACKAGE}[{extra}]'"
        checks += verdict(f"extra {extra}", found, good=all(good for good, _ in results), remedy=remedy)
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


def _requirements(extra: str, package: str = PACKAGE) -> list[Requirement]:
    """Return what a package requires with an extra, "" for none."""
    found = map(Requirement, metadata.requires(package) or [])
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]


def _installed(requirement: Requirement) -> tuple[bool, str]:
    """Return whether it is met, and what is installed."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False, f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return False, f"{requirement.name} {version}, which is outside {requirement.specifier}"
    for extra in requirement.extras:
        wanted = _requirements(extra, requirement.name)
        missing = [each.name for each in wanted if "extra" in str(each.marker) and not _is_there(each.name)]
        if missing:
            return False, f"{requirement.name}[{extra}]: {', '.join(missing)} not installed"
    return True, f"{requirement.name} {version}"


def _is_there(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _plain(requirement: Requirement) -> str:
    """Return the requirement as pip takes it, without its marker."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"
