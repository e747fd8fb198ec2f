"""What draws the values of a sweep's trials, and what stops trials before their end: Ray Tune's own classes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from rayrl_dt.seeding import derive_seed
from rayrl_dt.tuning.space import Space, replaced, value_at
from rayrl_dt.tuning.sweep_spec import SEED, SweepSpec

__all__ = ["scheduler", "searcher"]

# Beyond any number of evaluations: a run ends itself.
_NO_END = 1_000_000


def searcher(spec: SweepSpec) -> Any:
    """Return what draws the trials' values; the same ones for the same seed."""
    written = value_at(spec.at({}), SEED)
    seed = derive_seed(written if isinstance(written, int) else 0, "tune") % 2**31
    if spec.settings.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=spec.settings.metric, mode=spec.settings.best, seed=seed)
    from ray.tune.search.basic_variant import BasicVariantGenerator

    # Constant: each draw is tried at every point of the grids, with every seed.
    return BasicVariantGenerator(
        constant_grid_search=True, random_state=seed, max_concurrent=spec.settings.max_concurrent or 0
    )


def scheduler(spec: SweepSpec) -> Any:
    """Return what stops trials early, or (PBT) lets them take over the better ones' weights."""
    from ray.tune import schedulers

    kind, grace = spec.settings.scheduler, spec.settings.grace_period
    time = "training_iteration"
    if kind == "asha":
        return schedulers.ASHAScheduler(time_attr=time, max_t=_NO_END, grace_period=grace)
    if kind == "median":
        return schedulers.MedianStoppingRule(time_attr=time, grace_period=grace)
    if kind == "pbt":
        return schedulers.PopulationBasedTraining(
            time_attr=time,
            perturbation_interval=grace,
            hyperparam_mutations=_mutations(spec.spaces),
            custom_explore_fn=functools.partial(_clip, spec.spaces),
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
