"""Runs a plan with Ray Tune, resumes it, and leaves a results table, a page and the best policy."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.algorithms.session import start_ray
from rayrl_dt.config_files import build_config
from rayrl_dt.data import sources
from rayrl_dt.data.staging import publish, stage
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import find_bundle
from rayrl_dt.seeding import derive_seed
from rayrl_dt.tuning.plan import Plan
from rayrl_dt.tuning.report import write_sweep_page
from rayrl_dt.tuning.resources import check_placement
from rayrl_dt.tuning.results import TrialResult, best_group, group_trials, read_trials
from rayrl_dt.tuning.space import Space, replaced, value_at

__all__ = ["SweepOutcome", "conclude", "sweep"]

_SWEEP, _RESULTS, _POLICY = "sweep.yaml", "results.json", "policy"
# Beyond any number of evaluations: a run ends itself.
_NO_END = 1_000_000
_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, eq=False)
class SweepOutcome:
    """How a sweep ended.

    Attributes:
        page: the HTML page.
        table: the results as JSON.
        trials: all of them.
        expected: how many trials there are to be.
        bundle: the best policy; None if no trial has left a checkpoint.
    """

    page: Path
    table: Path
    trials: tuple[TrialResult, ...]
    expected: int
    bundle: Path | None

    @property
    def finished(self) -> bool:
        """Whether each trial came to its end."""
        done = sum(trial.status == "finished" for trial in self.trials)
        return done >= self.expected


def sweep(plan: Plan, out: Path, *, resume: bool = False, address: str | None = None) -> SweepOutcome:
    """Runs all trials, or those that are not finished; a trial that dies goes on from its newest checkpoint.

    Args:
        plan: from `make_plan`.
        out: folder of the sweep; new, unless `resume`.
        resume: go on with the sweep in the folder; finished trials are not run again.
        address: of a running Ray cluster; `out` must be storage that its nodes share.

    Raises:
        UserError: the folder is taken or holds another sweep, there is nothing to resume, data or an environment is
            missing, or the cluster cannot hold a trial.
    """
    from ray import tune

    out = out.resolve()
    # Tune saves its state every 10 s; what ended since then would be run again after a kill.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    restored = _check_folder(plan, out, resume=resume)
    _check_data(plan)
    start_ray(address=address)
    _check_resources(plan)
    from rayrl_dt.tuning.trial import SweepTrial

    if restored:
        tuner = tune.Tuner.restore(str(out), SweepTrial, resume_unfinished=True, resume_errored=True)
    else:
        out.mkdir(parents=True, exist_ok=True)
        (out / _SWEEP).write_text(_text(plan))
        tuner = _tuner(plan, out)
    tuner.fit()
    return conclude(plan, out)


def conclude(plan: Plan, out: Path) -> SweepOutcome:
    """Writes the results table, the page and the best policy from what the folder holds."""
    trials = read_trials(out, plan)
    groups = group_trials(trials, plan.settings.best)
    winner = best_group(groups)
    bundle = None
    best: dict[str, Any] | None = None
    if winner is not None:
        group, trial = winner
        checkpoint = trial.best_checkpoint
        assert checkpoint is not None
        bundle = _export(checkpoint, out / _POLICY)
        best = {**trial.to_json(), "median": group.median}
    settings = plan.settings
    table = {
        "name": plan.name,
        "metric": settings.metric,
        "mode": settings.best,
        "best": best,
        "settings": [group.to_json() for group in groups],
        "trials": [trial.to_json() for trial in trials],
    }
    path = out / _RESULTS
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(table, indent=2))
    aside.replace(path)
    page = write_sweep_page(plan, trials, groups, out)
    return SweepOutcome(page, path, tuple(trials), _expected(plan), bundle)


def _check_folder(plan: Plan, out: Path, *, resume: bool) -> bool:
    """Returns whether there is a sweep in the folder to go on with."""
    from ray import tune

    saved = out / _SWEEP
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists already; continue it with --resume or choose another --out")
        return False
    if not saved.exists():
        raise UserError(f"{out} holds no sweep to resume; start it without --resume")
    if saved.read_text() != _text(plan):
        raise UserError(
            f"{out} holds a sweep of another config ({saved}); resume with the file and --samples that began it, "
            "or choose another --out"
        )
    return bool(tune.Tuner.can_restore(str(out))) and any(out.glob("experiment_state-*.json"))


def _check_data(plan: Plan) -> None:
    """Loads each data set once, before several trials want it, and makes sure that it can be evaluated on."""
    for values in plan.corners:
        config = build_config(values)
        if config.env is None and sources.load(str(config.dataset)).info.env_spec is None:
            raise UserError(
                f"{config.dataset} names no environment, so no iteration would report {plan.settings.metric}; "
                "set environment.env"
            )
    for dataset in plan.datasets:
        sources.load(dataset)


def _check_resources(plan: Plan) -> None:
    import ray

    from rayrl_dt.tuning.trial import SweepTrial

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    requests = {
        json.dumps(SweepTrial.default_resource_request(values).bundles, sort_keys=True)
        for values in plan.corners
    }
    for request in sorted(requests):
        check_placement(json.loads(request), nodes)


def _tuner(plan: Plan, out: Path) -> Any:
    from ray import tune

    from rayrl_dt.tuning.trial import SweepTrial

    settings = plan.settings
    return tune.Tuner(
        SweepTrial,
        param_space=plan.param_space,
        tune_config=tune.TuneConfig(
            metric=settings.metric,
            mode=settings.best,
            num_samples=settings.num_samples,
            search_alg=_searcher(plan),
            scheduler=_scheduler(plan),
            max_concurrent_trials=settings.max_concurrent,
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=out.name,
            storage_path=str(out.parent),
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                # The best one, and always the newest.
                num_to_keep=_KEPT_CHECKPOINTS,
                checkpoint_score_attribute=settings.metric,
                checkpoint_score_order=settings.best,
                checkpoint_frequency=1,
                checkpoint_at_end=True,
            ),
            verbose=1,
        ),
    )


def _trial_name(trial: Any) -> str:
    return str(trial.trial_id)


def _searcher(plan: Plan) -> Any:
    seed = derive_seed(_seed(plan), "tune") % 2**31
    if plan.settings.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=plan.settings.metric, mode=plan.settings.best, seed=seed)
    from ray.tune.search.basic_variant import BasicVariantGenerator

    # Constant: each draw is tried at every point of the grids, with every seed.
    return BasicVariantGenerator(
        constant_grid_search=True, random_state=seed, max_concurrent=plan.settings.max_concurrent or 0
    )


def _scheduler(plan: Plan) -> Any:
    from ray.tune import schedulers

    kind, patience = plan.settings.scheduler, plan.settings.grace_period
    time = "training_iteration"
    if kind == "asha":
        return schedulers.ASHAScheduler(time_attr=time, max_t=_NO_END, grace_period=patience)
    if kind == "median":
        return schedulers.MedianStoppingRule(time_attr=time, grace_period=patience)
    if kind == "pbt":
        return schedulers.PopulationBasedTraining(
            time_attr=time,
            perturbation_interval=patience,
            hyperparam_mutations=_mutations(plan.spaces),
            custom_explore_fn=functools.partial(_clip, plan.spaces),
        )
    return schedulers.FIFOScheduler()


def _mutations(spaces: tuple[Space, ...]) -> dict[str, Any]:
    # PBT walks along lists; a `choice` would be multiplied like a number.
    return replaced(
        {},
        {space.path: list(space.options) if space.kind == "choice" else space.domain() for space in spaces},
    )


def _clip(spaces: tuple[Space, ...], config: Mapping[str, Any]) -> dict[str, Any]:
    return replaced(config, {space.path: space.clipped(value_at(config, space.path)) for space in spaces})


def _seed(plan: Plan) -> int:
    seed = value_at(plan.at({}), "debugging.seed")
    return seed if isinstance(seed, int) else 0


def _expected(plan: Plan) -> int:
    grids = 1
    for space in plan.spaces:
        grids *= len(space.options) if space.kind == "grid" else 1
    return plan.settings.num_samples * grids


def _text(plan: Plan) -> str:
    """The sweep as YAML: what a later --resume must agree with."""
    settings = {
        key: list(value) if isinstance(value, tuple) else value for key, value in vars(plan.settings).items()
    }
    return yaml.safe_dump({"name": plan.name, **plan.values, "tune": settings}, sort_keys=False)


def _export(checkpoint: Path, target: Path) -> Path:
    aside = stage(target)
    try:
        shutil.copytree(find_bundle(checkpoint), aside, dirs_exist_ok=True)
        publish(aside, target, replace=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target
