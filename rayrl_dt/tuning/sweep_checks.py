"""What is refused before the first trial of a sweep is scheduled: folders, data, nodes and clusters that cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayrl_dt.algorithms.environments import chosen
from rayrl_dt.algorithms.old_checkpoints import check_resumable
from rayrl_dt.algorithms.placement import check_placement, nodes_that_may_start
from rayrl_dt.data import sources
from rayrl_dt.doctor.check import Check
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.refined_policy import RefinedPolicy
from rayrl_dt.runs.config_files import build_config, read_yaml
from rayrl_dt.tuning.conclusion import SWEEP
from rayrl_dt.tuning.refinement_job import read_refinement_job
from rayrl_dt.tuning.results import read_trials
from rayrl_dt.tuning.space import value_at
from rayrl_dt.tuning.sweep_spec import SweepSpec, read_sweep

__all__ = ["can_resume", "check_data", "check_resources", "require_shared"]


_ODD = "[]*?#%"
"""What stands for something else in patterns and URIs."""


def can_resume(spec: SweepSpec, out: Path, *, resume: bool) -> bool:
    """Return whether there is a sweep in the folder to go on with."""
    from ray import tune

    saved = out / SWEEP
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists already; continue it with --resume or choose another --out")
        odd = sorted(set(str(out)) & set(_ODD))
        if odd:
            raise UserError(
                f"{out} has {' '.join(odd)} in its path, and Ray Tune would not find the sweep again; choose another "
                "--out"
            )
        return False
    if not saved.exists():
        raise UserError(f"{out} holds no sweep to resume; start it without --resume")
    if not _is_of(saved, spec):
        raise UserError(
            f"{out} holds a sweep of another config ({saved}); resume it without --set and --samples, or choose "
            "another --out"
        )
    if not tune.Tuner.can_restore(str(out)) or not any(out.glob("experiment_state-*.json")):
        return False
    _check_trials(spec, out)
    return True


def check_data(spec: SweepSpec) -> None:
    """Load what trials need once, before several want it, and make sure that it can be evaluated."""
    if spec.run is not None:
        job = read_refinement_job(spec.at({}))
        RefinedPolicy(job.policy, targets=job.targets, episodes=1, env=job.env).close()
        return
    for config in map(build_config, spec.corners):
        env = chosen(config, sources.load(str(config.dataset)).info)
        if env is None:
            raise UserError(
                f"{config.dataset} names no environment, so no iteration would report {spec.settings.metric}; "
                "set environment.env"
            )
        if config.env is None:
            env.for_evaluation.make_vector(1).close()
    for dataset in dict.fromkeys(str(value_at(values, "offline_data.dataset")) for values in spec.corners):
        sources.load(dataset)


def require_shared(folder: Path, found: Check) -> None:
    """Refuse a sweep's folder that a node cannot read or write, as the nodes have found."""
    if found.status == "error":
        raise UserError(
            f"{folder} is not shared by all nodes ({found.found}); choose an --out on storage that each of them mounts"
        )


def check_resources(spec: SweepSpec, trainable: Any) -> None:
    """Refuse a trial that would not fit into the empty cluster; Ray Tune would wait for ever."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    requests = {
        json.dumps(trainable.default_resource_request(values).bundles, sort_keys=True)
        for values in spec.corners
    }
    for request in sorted(requests):
        check_placement(json.loads(request), alive, nodes_that_may_start())


def _is_of(saved: Path, spec: SweepSpec) -> bool:
    """Return whether a sweep's file says the same, read as it would be today."""
    if saved.read_text() == spec.to_yaml():
        return True
    try:
        return read_sweep(read_yaml(saved), default_name=spec.name).to_yaml() == spec.to_yaml()
    except UserError:
        return False


def _check_trials(spec: SweepSpec, out: Path) -> None:
    """Refuse trials that are to go on from a checkpoint of another version."""
    from rayrl_dt.tuning.trial import ALGORITHM

    for trial in read_trials(out, spec):
        if trial.status != "finished":
            for checkpoint in trial.folder.glob(f"checkpoint_*/{ALGORITHM}"):
                check_resumable(checkpoint)
