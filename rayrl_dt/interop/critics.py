"""The critic of a policy bundle: `critic.safetensors` beside the policy, and a record of it in `policy.json`.

The file carries a fingerprint of the units that it was trained in, so that a critic which strayed to a policy with
another normalizer is refused and does not mislead.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rayrl_dt.critics.networks import IQLCritic, units_of
from rayrl_dt.critics.training import CriticTraining, fit_critic
from rayrl_dt.data import filters, sources
from rayrl_dt.data.staging import publish, stage
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import find_bundle, load_model, read_header
from rayrl_dt.interop.run_files import run_settings
from rayrl_dt.models.sequence_model import check_architecture
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import ActionGradient, ActionRefiner, check_continuous
from rayrl_dt.policy.refiner import Refiner
from rayrl_dt.policy.sampled_actions import SampledActions, SamplingRefiner

__all__ = [
    "add_critic",
    "carry_critic",
    "load_critic",
    "load_refiner",
    "make_refiner",
    "run_data",
    "save_critic",
]

_WEIGHTS = "critic.safetensors"
_HEADER = "policy.json"
_UNITS = "units"
_UNSAVED = "target."


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
    model = load_model(path)
    # Before the data, which take longer to load than to refuse.
    IQLCritic(model.spec, hidden=1)
    store = run_data(path, model.spec) if dataset is None else sources.load(dataset)
    critic = fit_critic(model, store, training, seed=seed, progress=progress)
    record = {**training.to_json(), "seed": seed, "dataset": store.info.source, "command": command}
    return save_critic(path, critic, model.spec, record=record)


def save_critic(
    path: str | os.PathLike[str], critic: IQLCritic, spec: PolicySpec, *, record: Mapping[str, Any]
) -> Path:
    """Put a critic into a bundle; the folder appears whole, or the one before stays.

    Args:
        path: run folder, checkpoint or bundle; a critic that is there is replaced.
        critic: its slow copy of Q is left out.
        spec: of the policy in whose units the critic was trained.
        record: how it was made, JSON-ready; it stands in `policy.json` under `critic`.

    Returns:
        The bundle's folder.

    Raises:
        UserError: there is no bundle.
    """
    folder, header = find_bundle(path), read_header(path)
    units = units_of(spec)
    header["critic"] = {**record, _UNITS: units}
    kept = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in critic.state_dict().items()
        if not name.startswith(_UNSAVED)
    }
    aside = stage(folder)
    try:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        save_file(kept, str(aside / _WEIGHTS), metadata={_UNITS: units})
        (aside / _HEADER).write_text(json.dumps(header, indent=2))
        publish(aside, folder, replace=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder


def carry_critic(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy the critic of a policy into a newer bundle of the same policy; do nothing where there is none.

    Args:
        source: bundle that may hold a critic; it need not exist.
        target: bundle without one. The critic's fingerprint goes along, so that it is refused where units differ.
    """
    old, new = Path(source), Path(target)
    if not (old / _WEIGHTS).is_file() or not (old / _HEADER).is_file():
        return
    header = {**read_header(new), "critic": read_header(old).get("critic")}
    shutil.copy(old / _WEIGHTS, new / _WEIGHTS)
    (new / _HEADER).write_text(json.dumps(header, indent=2))


def load_critic(path: str | os.PathLike[str], spec: PolicySpec | None = None) -> IQLCritic:
    """Load the critic of a bundle.

    Args:
        path: run folder, checkpoint or bundle.
        spec: of the policy whose actions it is to judge; None for the bundle's own.

    Raises:
        UserError: the policy's actions are discrete, there is no critic, it is damaged, or it was trained in other
            units than the policy's.
    """
    folder = find_bundle(path)
    policy = spec if spec is not None else PolicySpec.from_json(read_header(path)["spec"])
    IQLCritic(policy, hidden=1)
    file = folder / _WEIGHTS
    if not file.exists():
        raise UserError(f"{folder} has no critic ({_WEIGHTS} is missing); train one: rayrl-dt critic {path}")
    try:
        with safe_open(str(file), "pt") as opened:
            units = (opened.metadata() or {}).get(_UNITS)
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is truncated ({error}); train it again: rayrl-dt critic {path}") from error
    if units != units_of(policy):
        raise UserError(
            f"the critic in {folder} has units {units}, the policy has {units_of(policy)}: it was trained with another "
            f"normalizer or other action bounds; train one for this policy: rayrl-dt critic {path}"
        )
    first = weights.get("q.q1.0.weight", torch.empty(1))
    critic = IQLCritic(policy, hidden=len(first))
    own = {name: value for name, value in critic.state_dict().items() if not name.startswith(_UNSAVED)}
    check_architecture(own, weights, source=str(file))
    critic.load_state_dict(weights, strict=False)
    critic.target.load_state_dict(critic.q.state_dict())
    return critic.requires_grad_(False).eval()


def load_refiner(
    path: str | os.PathLike[str], spec: PolicySpec, settings: ActionGradient | SampledActions
) -> Refiner | None:
    """Return what refines a policy's actions with the critic of a bundle; None where the settings are idle.

    Args:
        path: run folder, checkpoint or bundle that holds the critic.
        spec: of the policy that acts.
        settings: of the action gradient, or of the sampled actions.

    Raises:
        UserError: as `load_critic`; discrete actions are refused even if the settings are idle.
    """
    check_continuous(spec)
    if settings.idle:
        return None
    return make_refiner(settings, load_critic(path, spec), spec)


def make_refiner(
    settings: ActionGradient | SampledActions, critic: IQLCritic, spec: PolicySpec
) -> Refiner | None:
    """Return what refines a policy's actions with a critic; None where the settings are idle.

    Args:
        settings: of the action gradient, or of the sampled actions.
        critic: in the units of the policy.
        spec: of the policy that acts.

    Raises:
        UserError: the policy's actions are discrete.
    """
    if settings.idle:
        return None
    if isinstance(settings, SampledActions):
        return SamplingRefiner(settings, critic, spec)
    return ActionRefiner(settings, critic, spec)


def run_data(path: str | os.PathLike[str], spec: PolicySpec) -> TrajectoryStore:
    """Load what a policy learned from, by the run's own filters where the run folder is at hand.

    Args:
        path: run folder, checkpoint or bundle.
        spec: of the policy.

    Raises:
        UserError: the data are not here any more.
    """
    chosen = run_settings(path, "offline_data")
    source = chosen.get("dataset") or spec.dataset
    try:
        store = sources.load(source, delayed_reward=bool(chosen.get("delayed_reward")))
    except UserError as error:
        raise UserError(f"{error}; or name other data of the same task with --dataset") from error
    if chosen.get("below_return") is not None:
        store = filters.below_return(store, chosen["below_return"])
    if chosen.get("top_percent") is not None:
        store = filters.top_percent(store, chosen["top_percent"])
    return store
