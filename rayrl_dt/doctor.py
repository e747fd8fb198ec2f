"""What this machine, or cluster, has and lacks: one line per check, with the remedy where something is wrong."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayrl_dt import precision
from rayrl_dt.data import minari_local, sources

__all__ = ["Check", "Status", "diagnose"]

Status = Literal["ok", "warning", "error"]

_PACKAGE = "rayrl_dt"
_DEVELOPMENT_EXTRAS = ("dev", "test")
_GIB = 2**30
_LEAST_MEMORY = 4 * _GIB
_LEAST_SPACE = 2 * _GIB
_NODE_TIMEOUT_S = 60.0
_SHARED_MEMORY = Path("/dev/shm")
# Ray's own default share of the memory.
_OBJECT_STORE_SHARE = 0.3


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: "ok", "warning" (works, but not for everything or not well) or "error".
        found: what is there, in one line.
        remedy: what to do, in one line; None if nothing.
    """

    name: str
    status: Status
    found: str
    remedy: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return asdict(self)


def diagnose(
    *, storage: Path | None = None, address: str | None = None, start_ray: bool = True
) -> list[Check]:
    """Checks the software, this machine, its folders and Ray. A check that fails says so; nothing is raised.

    Args:
        storage: folder that runs are to be written to; checked on every node if `address` is given.
        address: Ray cluster to connect to; None for a small one on this machine.
        start_ray: whether to start or connect to Ray if it does not run in this process yet.
    """
    checks = [
        *_guarded("Python", _python, "use a Python that the package supports"),
        *_guarded("packages", _packages, "pip install rayrl_dt"),
        *_guarded("extras", _extras, "pip install rayrl_dt"),
        *_guarded("CPU", _cpu, "run on Linux, where this can be read"),
        *_guarded("memory", _memory, "run on Linux, where this can be read"),
        *_guarded("precision", _precision, "set training.precision to fp32"),
        *_guarded("CUDA", _cuda, "check the driver with nvidia-smi, or train on the CPU"),
        *_guarded("MuJoCo", _mujoco, "pip install 'gymnasium[mujoco]'; the data sets in MuJoCo need it"),
        *_guarded("Atari", _atari, "pip install ale-py"),
        *_guarded("Minari data", _minari, "set MINARI_DATASETS_PATH to a readable folder"),
        *_guarded("cache", _cache, "set RAYRL_DT_CACHE to a writable folder"),
    ]
    if storage is not None:
        place = storage
        checks += _guarded("storage", lambda: _folder("storage", place, _STORAGE_REMEDY), _STORAGE_REMEDY)
    remedy = "check that the cluster is up and the address right" if address else "stop other Rays: ray stop"
    return checks + _guarded("Ray", lambda: _ray(storage, address, start_ray=start_ray), remedy)


_STORAGE_REMEDY = "choose a writable folder with --storage; on a cluster, one that all nodes share"


def _guarded(name: str, check: Callable[[], list[Check]], remedy: str) -> list[Check]:
    """The check's result; an exception is a result too."""
    try:
        return check()
    except Exception as error:  # whatever a broken installation raises
        return [Check(name, "error", _one_line(error), remedy)]


def _python() -> list[Check]:
    version = platform.python_version()
    bounds = metadata.metadata(_PACKAGE)["Requires-Python"] or ""
    found = f"{version} on {platform.platform(terse=True)}"
    if SpecifierSet(bounds).contains(version, prereleases=True):
        return [Check("Python", "ok", found)]
    return [Check("Python", "error", found, f"install a Python {bounds}")]


def _packages() -> list[Check]:
    """One check per required package."""
    checks = [Check(_PACKAGE, "ok", metadata.version(_PACKAGE))]
    for requirement in _requirements():
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        problem, found = _installed(requirement)
        if problem:
            checks.append(Check(requirement.name, "error", found, f"pip install '{_plain(requirement)}'"))
        else:
            checks.append(Check(requirement.name, "ok", found))
    return checks


def _extras() -> list[Check]:
    """One check per extra that users may want; none of them is needed."""
    checks = []
    for extra in metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []:
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
            remedy = f"only if you need it: pip install '{_PACKAGE}[{extra}]'"
            checks.append(Check(f"extra {extra}", "warning", found, remedy))
        else:
            checks.append(Check(f"extra {extra}", "ok", found))
    return checks


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(_PACKAGE) or []]


def _installed(requirement: Requirement) -> tuple[bool, str]:
    """Whether there is a problem, and what is installed."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return True, f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return True, f"{requirement.name} {version}, which is outside {requirement.specifier}"
    return False, f"{requirement.name} {version}"


def _plain(requirement: Requirement) -> str:
    """The requirement as one gives it to pip, without its marker."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _cpu() -> list[Check]:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    found = f"{usable} of {cores} cores usable"
    if usable >= 2:
        return [Check("CPU", "ok", found)]
    return [Check("CPU", "warning", found, "give the process 2 cores or more: Ray shares them with training")]


def _memory() -> list[Check]:
    total, available = _memory_sizes()
    found = f"{_size(available)} available of {_size(total)}"
    if available >= _LEAST_MEMORY:
        return [Check("memory", "ok", found)]
    return [
        Check(
            "memory",
            "warning",
            found,
            f"free some: training, Ray and environments take {_size(_LEAST_MEMORY)}",
        )
    ]


def _memory_sizes() -> tuple[int, int]:
    """Total and available memory in bytes, within the container's limit."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        values[name] = int(value.split()[0]) * 1024
    total, available = values["MemTotal"], values["MemAvailable"]
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" is no number
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(0, limit - used))


def _precision() -> list[Check]:
    native = "has" if precision.cpu_has_bf16() else "has no"
    chosen = precision.resolve("auto", "cpu")
    return [
        Check("precision", "ok", f"the CPU {native} bf16 arithmetic; precision: auto gives {chosen} on it")
    ]


def _cuda() -> list[Check]:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} ({_size(device.total_memory)})" for device in devices)
        return [
            Check("CUDA", "ok", f"{names}; precision: auto gives {precision.resolve('auto', 'cuda')} on it")
        ]
    if not Path("/proc/driver/nvidia").exists():
        return [Check("CUDA", "ok", "no device: training runs on the CPU")]
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    remedy = "install the torch build that fits the driver: https://pytorch.org/get-started"
    return [Check("CUDA", "warning", f"there is a driver, but torch {torch.__version__} is {built}", remedy)]


def _mujoco() -> list[Check]:
    from rayrl_dt import envs

    with closing(envs.make("Hopper-v5")) as env:
        env.reset(seed=0)
        env.step(env.action_space.sample())
    return [Check("MuJoCo", "ok", f"Hopper-v5 runs on mujoco {metadata.version('mujoco')}")]


def _atari() -> list[Check]:
    importlib.import_module("ale_py")
    return [Check("Atari", "ok", f"ale-py {metadata.version('ale-py')}")]


def _minari() -> list[Check]:
    root = minari_local.datasets_root()
    count = len(minari_local.list_local()) if root.is_dir() else 0
    if count:
        return [Check("Minari data", "ok", f"{count} data set{'s' if count > 1 else ''} in {root}")]
    where = "holds no data set" if root.is_dir() else "does not exist yet"
    return [Check("Minari data", "warning", f"{root} {where}", "make one with `rayrl-dt data make RECIPE`")]


def _cache() -> list[Check]:
    return _folder("cache", sources.cache_root(), "set RAYRL_DT_CACHE to a writable folder")


def _folder(name: str, folder: Path, remedy: str) -> list[Check]:
    """Whether a folder, or the one that it would be made in, can be written to and has room."""
    try:
        with _probe_folder(folder) as probe:
            _write_rename_delete(probe)
            free = shutil.disk_usage(probe).free
    except OSError as error:
        return [Check(name, "error", f"{folder} is not writable: {_one_line(error)}", remedy)]
    found = f"{folder} is writable, {_size(free)} free" + ("" if folder.is_dir() else " (it will be created)")
    if free < _LEAST_SPACE:
        return [Check(name, "warning", found, f"free some space, or {remedy}")]
    return [Check(name, "ok", found)]


@contextmanager
def _probe_folder(folder: Path) -> Iterator[Path]:
    """A folder inside `folder`, or inside its nearest parent that exists; gone afterwards."""
    existing = folder.expanduser().absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    with tempfile.TemporaryDirectory(prefix=".rayrl_dt-probe-", dir=existing) as probe:
        yield Path(probe)


def _write_rename_delete(folder: Path) -> None:
    """What a run needs of its storage: atomic replacement of files.

    Raises:
        OSError: something of it is not possible.
    """
    content = uuid.uuid4().hex
    first, second = folder / f"{content}.tmp", folder / f"{content}.txt"
    first.write_text(content)
    first.replace(second)
    if second.read_text() != content:
        raise OSError("a file reads back differently")
    second.unlink()


def _ray(storage: Path | None, address: str | None, *, start_ray: bool) -> list[Check]:
    """Ray's resources, nodes and versions, and the storage as the nodes see it."""
    import ray

    mine = not ray.is_initialized()
    if mine and not (start_ray or address):
        return [Check("Ray", "ok", f"{ray.__version__}, not started"), *_shared_memory(None)]
    try:
        if mine:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        nodes = [node for node in ray.nodes() if node["Alive"]]
        where = address or ("started here" if mine else "already running")
        checks = [Check("Ray", "ok", f"{ray.__version__}, {where}: {_resources(ray.cluster_resources())}")]
        checks += _nodes(nodes, storage if address else None)
        store = sum(
            node["Resources"].get("object_store_memory", 0.0)
            for node in nodes
            if node["NodeID"] == ray.get_runtime_context().get_node_id()
        )
        return checks + _shared_memory(store)
    finally:
        if mine and ray.is_initialized():
            ray.shutdown()


def _resources(resources: dict[str, float]) -> str:
    return (
        f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, "
        f"{_size(resources.get('memory', 0))} memory, {_size(resources.get('object_store_memory', 0))} object store"
    )


def _nodes(nodes: list[dict[str, Any]], storage: Path | None) -> list[Check]:
    """Asks each node for its versions and, where `storage` is given, to write to the driver's probe folder."""
    if storage is None:
        return _compare_versions(_ask(nodes, None))
    try:
        with _probe_folder(storage) as probe:
            answers = _ask(nodes, str(probe))
    except OSError as error:
        return [Check("storage on nodes", "error", f"{storage}: {_one_line(error)}", _STORAGE_REMEDY)]
    failures = [f"{name}: {answer['storage']}" for name, answer in answers.items() if answer.get("storage")]
    checks = _compare_versions(answers)
    if failures:
        return [*checks, Check("storage on nodes", "error", "; ".join(failures), _STORAGE_REMEDY)]
    asked = sum("error" not in answer for answer in answers.values())
    return [*checks, Check("storage on nodes", "ok", f"{storage} is shared and writable on {asked} nodes")]


def _ask(nodes: list[dict[str, Any]], probe: str | None) -> dict[str, dict[str, Any]]:
    """The answers by node; a node that cannot answer gives its error."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    describe = ray.remote(num_cpus=0, max_retries=0)(_describe_node)
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})"
        asked[name] = describe.options(scheduling_strategy=strategy).remote(probe)
    answers: dict[str, dict[str, Any]] = {}
    for name, reference in asked.items():
        try:
            answers[name] = ray.get(reference, timeout=_NODE_TIMEOUT_S)
        except Exception as error:  # the node is gone, or our package is missing there
            answers[name] = {"error": _one_line(error)}
    return answers


def _describe_node(probe: str | None) -> dict[str, Any]:
    """Runs on a node: its versions, and what is wrong with the storage there (None if nothing)."""
    import ray

    wrong: str | None = None
    if probe is not None:
        folder = Path(probe)
        try:
            if not folder.is_dir():
                raise OSError("the folder is not the one that the driver sees")
            _write_rename_delete(folder)
        except OSError as error:
            wrong = _one_line(error)
    return {
        "versions": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            "ray": ray.__version__,
            _PACKAGE: metadata.version(_PACKAGE),
        },
        "hostname": socket.gethostname(),
        "storage": wrong,
    }


def _compare_versions(answers: dict[str, dict[str, Any]]) -> list[Check]:
    """One check: all nodes answer, with the versions of this process."""
    here = _describe_node(None)["versions"]
    problems = []
    for name, answer in answers.items():
        if "error" in answer:
            problems.append(f"{name}: {answer['error']}")
            continue
        differing = [f"{key} {value}" for key, value in answer["versions"].items() if value != here.get(key)]
        if differing:
            problems.append(f"{name} has {', '.join(differing)}")
    versions = ", ".join(f"{key} {value}" for key, value in here.items())
    if problems:
        remedy = f"install the same versions on every node: {versions}"
        return [Check("Ray nodes", "error", "; ".join(problems), remedy)]
    plural = "s" if len(answers) != 1 else ""
    return [Check("Ray nodes", "ok", f"{len(answers)} node{plural}, all with {versions}")]


def _shared_memory(store: float | None) -> list[Check]:
    """Whether the shared memory of this machine holds Ray's object store.

    Args:
        store: the object store of this machine in bytes; None if Ray does not run, for what it would take.
    """
    if not _SHARED_MEMORY.is_dir():
        return []
    size = shutil.disk_usage(_SHARED_MEMORY).total
    wanted = store or _OBJECT_STORE_SHARE * _memory_sizes()[0]
    found = f"{_SHARED_MEMORY} has {_size(size)}; the object store takes {_size(wanted)}"
    if size >= wanted:
        return [Check("shared memory", "ok", found)]
    remedy = f"start the container with --shm-size={max(1, round(wanted / _GIB))}g, else Ray uses the disk"
    return [Check("shared memory", "warning", found, remedy)]


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB"


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
