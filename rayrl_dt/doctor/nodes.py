"""What each node of a cluster says of itself, and what is wrong where they do not agree.

The comparisons are functions of the reports alone: nodes that differ are rare on a desk and common in a cluster.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from rayrl_dt.doctor.check import PACKAGE, Check, verdict
from rayrl_dt.doctor.folders import STORAGE_REMEDY, URI_REMEDY, bytes_of
from rayrl_dt.errors import UserError, one_line

__all__ = [
    "Answers",
    "NodeReport",
    "compare_data",
    "compare_gpus",
    "compare_storage",
    "compare_uri",
    "compare_versions",
    "describe",
    "leave_mark",
    "unread_marks",
    "versions",
]

_COMPARED = ("ray", "torch", PACKAGE, "gymnasium", "minari")
_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
_COUNT_TIMEOUT_S = 40.0


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself.

    Attributes:
        versions: of Python and of the packages that all nodes must agree on.
        gpus: GPUs that torch sees there; None if the node has none by Ray's account and no driver.
        data: size of the data set's files there, or why they are not there; None if none was asked for.
    """

    versions: dict[str, str]
    gpus: int | None = None
    data: int | str | None = None


# By the node's name; the error of a node that gave no report.
Answers: TypeAlias = Mapping[str, "NodeReport | str"]


def versions() -> dict[str, str]:
    """Return the versions here. Builds for other devices are the same version: a head without a GPU is common."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    return found | {name: metadata.version(name).partition("+")[0] for name in _COMPARED}


def describe(dataset: str | None, ray_gpus: float) -> NodeReport:
    """Return the report of the node that this runs on, on which Ray offers so many GPUs."""
    gpus = _torch_gpus() if ray_gpus > 0 or Path("/proc/driver/nvidia").exists() else None
    data: int | str | None = None
    if dataset is not None:
        try:
            data = bytes_of(dataset)
        except (OSError, UserError) as error:
            data = one_line(error)
    return NodeReport(versions(), gpus, data)


def _torch_gpus() -> int:
    """Count in a process of its own: Ray hides the GPUs from a task that asks for none."""
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _COUNT_GPUS]
    done = subprocess.run(command, env=visible, capture_output=True, text=True, timeout=_COUNT_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"torch does not count the GPUs: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def leave_mark(probe: str, mark: str) -> None:
    """Write a file that the other nodes are to read; runs on each node.

    Raises:
        OSError: the folder is not the driver's, or not writable.
    """
    folder = Path(probe)
    if not folder.is_dir():
        raise OSError("the folder is not the one that the driver sees")
    aside = folder / f"{mark}.tmp"
    aside.write_text(mark)
    aside.replace(folder / mark)


def unread_marks(probe: str, marks: Mapping[str, str]) -> list[str]:
    """Return the names of the nodes whose marks (by name) cannot be read on the node that this runs on."""

    def readable(mark: str) -> bool:
        try:
            return (Path(probe) / mark).read_text() == mark
        except OSError:
            return False

    return [name for name, mark in marks.items() if not readable(mark)]


def compare_versions(answers: Answers) -> list[Check]:
    """Check that all nodes answer, with the versions of this process."""
    here = versions()
    problems = []
    for name, answer in answers.items():
        if isinstance(answer, str):
            problems.append(f"{name}: {answer}")
            continue
        differing = [
            f"{key} {answer.versions.get(key, 'missing')}"
            for key in here
            if answer.versions.get(key) != here[key]
        ]
        if differing:
            problems.append(f"{name} has {', '.join(differing)}")
    listed = ", ".join(f"{key} {value}" for key, value in here.items())
    remedy = f"install the same versions on every node (one image: cluster/Dockerfile): {listed}"
    return _agreement("Ray nodes", problems, remedy, f"{_nodes(len(answers))}, all with {listed}")


def compare_gpus(answers: Answers, offered: Mapping[str, float]) -> list[Check]:
    """Check that torch can use the GPUs that Ray offers (by the node's name), and Ray offers those torch can use."""
    unusable, unoffered = [], []
    for name, answer in answers.items():
        if isinstance(answer, str) or answer.gpus is None:
            continue
        if answer.gpus < offered[name]:
            unusable.append(f"{name}: Ray offers {offered[name]:g} GPUs and torch sees {answer.gpus}")
        elif answer.gpus > 0 and offered[name] == 0:
            unoffered.append(f"{name}: torch sees {answer.gpus} GPUs and Ray offers none")
    if unusable:
        remedy = "install a CUDA build of torch there, or give the container its GPUs (--gpus all)"
        return [Check("GPUs on nodes", "error", "; ".join(unusable + unoffered), remedy)]
    if unoffered:
        remedy = "start Ray there with --num-gpus, or leave them if you do not need them"
        return [Check("GPUs on nodes", "warning", "; ".join(unoffered), remedy)]
    holders = sum(count > 0 for count in offered.values())
    found = f"{sum(offered.values()):g} on {_nodes(holders)}, seen by torch" if holders else "none"
    return [Check("GPUs on nodes", "ok", found)]


def compare_storage(
    storage: Path, wrote: Mapping[str, str | None], unread: Mapping[str, list[str] | str]
) -> Check:
    """Check that every node writes to the storage, and reads what every other has written.

    Args:
        storage: the folder.
        wrote: by the node's name, what went wrong when it left its mark; None if nothing.
        unread: by the node's name, the nodes whose marks it could not read, or the error of one that gave no answer.
    """
    problems = [f"{name}: {problem}" for name, problem in wrote.items() if problem]
    for name, answer in unread.items():
        if isinstance(answer, str):
            problems.append(f"{name}: {answer}")
        elif answer:
            problems.append(f"{name} does not see what {', '.join(answer)} wrote")
    found = f"{storage} is shared, {_nodes(len(wrote))} wrote to it and read each other"
    return _agreement("storage on nodes", problems, STORAGE_REMEDY, found)[0]


def compare_uri(uri: str, wrote: Mapping[str, str | None]) -> Check:
    """Check that every node can keep runs at a URI.

    Args:
        uri: of the storage.
        wrote: by the node's name, what went wrong there; None if nothing.
    """
    problems = [f"{name}: {problem}" for name, problem in wrote.items() if problem]
    found = f"{uri} can be written and read from {_nodes(len(wrote))}"
    return _agreement("storage on nodes", problems, URI_REMEDY, found)[0]


def compare_data(dataset: str, answers: Answers) -> list[Check]:
    """Check that the data set is on every node, and the same."""
    told = {name: answer.data for name, answer in answers.items() if not isinstance(answer, str)}
    sizes = {name: size for name, size in told.items() if isinstance(size, int)}
    problems = [f"{name}: {reason}" for name, reason in told.items() if name not in sizes]
    if len(set(sizes.values())) > 1:
        problems += [f"{name} has {size:,} bytes of it" for name, size in sizes.items()]
    remedy = (
        "keep it on storage that all nodes share, and set MINARI_DATASETS_PATH and RAYRL_DT_CACHE to it on every "
        "node before Ray starts there"
    )
    return _agreement("data on nodes", problems, remedy, f"{dataset} is on {_nodes(len(sizes))}")


def _agreement(name: str, problems: list[str], remedy: str, found: str) -> list[Check]:
    found = "; ".join(problems) or found
    return verdict(name, found, good=not problems, remedy=remedy, otherwise="error")


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"
