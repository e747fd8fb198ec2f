"""Critics of policy bundles: trained on the policy's own data, kept beside it, carried on by its training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rayrl_dt.critics.calibration import Calibration, fit_calibration
from rayrl_dt.critics.networks import IQLCritic, units_of
from rayrl_dt.critics.training import CriticTraining, fit_critic
from rayrl_dt.data import filters, sources
from rayrl_dt.data.staging import replacing
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critic_file import CRITIC, UNITS, write_critic
from rayrl_dt.interop.header import HEADER
from rayrl_dt.policy.double_check import DoubleCheck, check_asked
from rayrl_dt.policy.refinement import Refinement
from rayrl_dt.policy.refiner import Refiner

__all__ = [
    "add_critic",
    "calibration_of",
    "carry_critic",
    "learned_from",
    "refiner_of",
    "run_data",
    "save_critic",
]


def add_critic(
    path: str | os.PathLike[str],
    *,
    training: CriticTraining,
    seed: int = 0,
    dataset: str | None = None,
    command: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train a critic for a policy on the policy's own data, and put it into its bundle.

    Args:
        path: run folder, checkpoint or bundle.
        training: how.
        seed: of weights and batches.
        dataset: source id of other data of the same task.
        command: the command line, for the record.
        progress: called with (steps done, steps in total).

    Returns:
        The bundle's folder.

    Raises:
        UserError: there is no bundle, its actions are discrete, or the data do not fit.
        TrainingDiverged: the critic could not be trained; the bundle is as it was.
    """
    bundle = Bundle.open(path)
    # Before the data, which take longer to load than to refuse.
    IQLCritic(bundle.spec, hidden=1)
    store = run_data(bundle) if dataset is None else sources.load(dataset)
    training = training.scaled_for(bundle.spec, store)
    critic = fit_critic(bundle.model, store, training, seed=seed, progress=progress)
    record = {**training.to_json(), "seed": seed, "dataset": store.info.source, "command": command}
    return save_critic(bundle, critic.state_dict(), record=record)


def refiner_of(bundle: Bundle, settings: Refinement) -> Refiner | None:
    """Return what refines the actions of a bundle's policy, calibrated on the policy's data where that is needed.

    Raises:
        UserError: as `Bundle.refiner`; the data are needed and not here, or the critic does not tell returns apart.
    """
    if not (isinstance(settings, DoubleCheck) and settings.calibrated):
        return bundle.refiner(settings)
    check_asked(bundle.spec)
    return bundle.refiner(settings, calibration=calibration_of(bundle))


@lru_cache(maxsize=1)
def calibration_of(bundle: Bundle) -> Calibration:
    """Return the calibration of a bundle's critic, fitted once for a sweep over the ways to act with it."""
    critic = bundle.critic  # before the data, which take longer to load than to refuse
    return fit_calibration(critic, bundle.model, run_data(bundle))


def save_critic(bundle: Bundle, weights: Mapping[str, Any], *, record: Mapping[str, Any]) -> Path:
    """Put a critic into a bundle; the folder appears whole, or the one before stays.

    Args:
        bundle: of the policy in whose units the critic was trained; a critic that is there is replaced.
        weights: `IQLCritic.state_dict()`, as tensors or arrays; the slow copy of Q is left out, and V may be missing.
        record: how it was made, JSON-ready; it stands in `policy.json` under `critic`.

    Returns:
        The bundle's folder.
    """
    folder = bundle.folder
    header = {**bundle.header, "critic": {**record, UNITS: units_of(bundle.spec)}}
    with replacing(folder, header=HEADER) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        write_critic(weights, bundle.spec, aside)
        (aside / HEADER).write_text(json.dumps(header, indent=2))
    return folder


def carry_critic(source: Path, target: Path) -> None:
    """Copy the critic of a policy into a newer bundle of the same policy, unless there is none, or that has its own.

    Args:
        source: bundle that may hold a critic; it need not exist.
        target: newer bundle. The critic's fingerprint goes along, so that it is refused where units differ.
    """
    if not (source / CRITIC).is_file() or not (source / HEADER).is_file() or (target / CRITIC).exists():
        return
    header = {**Bundle.open(target).header, "critic": Bundle.open(source).header.get("critic")}
    shutil.copy(source / CRITIC, target / CRITIC)
    (target / HEADER).write_text(json.dumps(header, indent=2))


def learned_from(source: str, delayed_reward: bool, limit: float | None) -> TrajectoryStore:
    """Load data as a run's settings have them, of `below_return` `limit` if that is not None.

    Raises:
        UserError: they are not here any more.
    """
    try:
        store = sources.load(source, delayed_reward=delayed_reward)
    except UserError as error:
        raise UserError(f"{error}; or name other data of the same task with --dataset") from error
    return store if limit is None else filters.below_return(store, limit)


def run_data(bundle: Bundle) -> TrajectoryStore:
    """Load what a policy learned from, by the filters of its training.

    Raises:
        UserError: the data are not here any more.
    """
    chosen = bundle.data_settings
    source = chosen.get("dataset") or bundle.spec.dataset
    store = learned_from(source, bool(chosen.get("delayed_reward")), chosen.get("below_return"))
    if chosen.get("top_percent") is not None:
        store = filters.top_percent(store, chosen["top_percent"])
    return store
