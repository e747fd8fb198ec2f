"""What this machine, or cluster, has and lacks: one line per check, with the remedy where something is wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rayrl_dt.doctor import cluster, folders, machine, software
from rayrl_dt.doctor.check import Check, Status, guarded

__all__ = ["Check", "Status", "diagnose"]


def diagnose(
    *,
    storage: Path | str | None = None,
    dataset: str | None = None,
    address: str | None = None,
    start_ray: bool = True,
) -> list[Check]:
    """Check the software, this machine, its folders and Ray. A check that fails says so; nothing is raised.

    Args:
        storage: folder or URI that runs are to be written to; checked on every node if `address` is given.
        dataset: source that runs are to read; looked for on every node if `address` is given.
        address: Ray cluster to connect to; None for a small one on this machine.
        start_ray: whether to start or connect to Ray if it does not run in this process yet.
    """
    checks = [
        *guarded("Python", software.python, "use a Python that the package supports"),
        *guarded("packages", software.packages, "pip install rayrl_dt"),
        *guarded("extras", software.extras, "pip install rayrl_dt"),
        *guarded("CPU", machine.cpu, "run on Linux, where this can be read"),
        *guarded("memory", machine.memory, "run on Linux, where this can be read"),
        *guarded("precision", machine.precision, "set training.precision to fp32"),
        *guarded("CUDA", machine.cuda, "check the driver with nvidia-smi, or train on the CPU"),
        *guarded(
            "MuJoCo", software.mujoco, "pip install 'gymnasium[mujoco]'; the data sets in MuJoCo need it"
        ),
        *guarded("Atari", software.atari, "pip install ale-py"),
        *guarded("Minari data", folders.minari, "set MINARI_DATASETS_PATH to a readable folder"),
        *guarded("cache", folders.cache, "set RAYRL_DT_CACHE to a writable folder"),
    ]
    if isinstance(storage, str) and "://" not in storage:
        storage = Path(storage)
    if isinstance(storage, str):
        checks += guarded("storage", partial(folders.reachable, storage), folders.URI_REMEDY)
    elif storage is not None:
        remedy = folders.STORAGE_REMEDY
        checks += guarded("storage", partial(folders.writable, "storage", storage, remedy), remedy)
    if dataset is not None:
        remedy = "make it with `rayrl-dt data make`, or name another with --dataset: rayrl-dt data list"
        checks += guarded("data", partial(folders.data, dataset), remedy)
    remedy = "check that the cluster is up and the address right" if address else "stop other Rays: ray stop"
    ray = partial(cluster.check_ray, storage=storage, dataset=dataset, address=address, start_ray=start_ray)
    return checks + guarded("Ray", ray, remedy)
