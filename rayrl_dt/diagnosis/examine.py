"""Measuring how trained policies use their return-to-go, each on the data that it learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.diagnosis import attention, conditioning, cost
from rayrl_dt.diagnosis.attention import AttentionSummary
from rayrl_dt.diagnosis.conditioning import Course, Sensitivity
from rayrl_dt.diagnosis.cost import Cost
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.targets import ReturnRange, TargetReturns, parse_targets
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import learned_from
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec, evaluated_in
from rayrl_dt.models.task import check_task
from rayrl_dt.reports.run_folder import short_names
from rayrl_dt.seeding import numpy_generator
from rayrl_dt.types import Window

__all__ = ["Examination", "PolicyExamination", "Progress", "examine"]

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is (0 if that is not known)."""

_BATCH = 64


@dataclass(frozen=True)
class PolicyExamination:
    """What was found out about one policy.

    Attributes:
        label: its shortest distinct name.
        path: as given.
        backbone: of its network.
        env: id of its environment, or None if unknown.
        dataset: the data that it was examined on: their source id, and `below_return` if that was chosen.
        gradient_steps: behind its weights, if recorded.
        attention: None for a backbone without attention that can be read.
        sensitivity: None if the data's returns have no range.
        courses: one per target; empty without rollouts.
        cost: of its network.
        remarks: what a reader must know, and what could not be measured; one line each.
    """

    label: str
    path: str
    backbone: str
    env: str | None
    dataset: str
    gradient_steps: int | None
    attention: AttentionSummary | None
    sensitivity: Sensitivity | None
    courses: tuple[Course, ...]
    cost: Cost
    remarks: tuple[str, ...] = ()

    @property
    def left(self) -> float | None:
        """Mean over targets of |mean return left at the end|, in ranges of the data's returns."""
        if not self.courses or self.sensitivity is None:
            return None
        return sum(abs(c.left_mean) for c in self.courses) / len(self.courses) / self.sensitivity.span

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {**asdict(self), "left": self.left, "cost": self.cost.to_json()}


@dataclass(frozen=True)
class Examination:
    """Several policies, examined alike.

    Attributes:
        policies: in the order given.
        windows: windows of data for attention and sensitivity.
        episodes: per target.
        seed: of windows, environments and sampled actions.
    """

    policies: tuple[PolicyExamination, ...]
    windows: int
    episodes: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {**asdict(self), "policies": [policy.to_json() for policy in self.policies]}


def examine(
    run_paths: Sequence[Path],
    *,
    targets: str = "dataset:3",
    episodes: int = 5,
    num_windows: int = 256,
    dataset: str | None = None,
    env: str | None = None,
    trust_environment: bool = False,
    precision: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Examination:
    """Measure how policies use their return-to-go. Policies of the same data are asked the same.

    They see as many steps, and select actions, as they were evaluated in training.

    Args:
        run_paths: run folders, checkpoints or bundles.
        targets: as for `parse_targets`; of the rollouts.
        episodes: per target; 0 for no rollouts.
        num_windows: windows of data for attention and sensitivity.
        dataset: source id that overrides each policy's own.
        env: overrides each policy's environment.
        trust_environment: run code of any package that a policy names as its environment.
        precision: of the timings: "fp32", "bf16" or "auto"; everything else is fp32.
        seed: of windows, environments and sampled actions.
        progress: told what is being done.

    Raises:
        UserError: a policy, its data or its environment is missing or does not fit, or an option is out of range.
    """
    if num_windows < 1 or episodes < 0:
        raise UserError(
            f"{num_windows} windows and {episodes} episodes were asked for; "
            "use at least 1 window, and 0 episodes only to leave the rollouts out"
        )
    say = progress or (lambda what, done, total: None)
    paths = list(dict.fromkeys(Path(path).expanduser().resolve() for path in run_paths))
    if not paths:
        raise UserError("there is no policy to diagnose; give at least one run folder, checkpoint or bundle")
    labels = _labels(paths)
    bundles = {label: Bundle.open(path) for label, path in zip(labels, paths, strict=True)}
    if trust_environment:
        bundles = {label: bundle.trusting() for label, bundle in bundles.items()}
    models = {label: bundle.model for label, bundle in bundles.items()}
    for bundle in bundles.values():
        if episodes > 0 and (env or bundle.spec.env):
            evaluated_in(bundle.spec, env).spec()  # refuses now what it would refuse after minutes
    groups: dict[tuple[str, bool, float | None], list[str]] = {}
    for label, model in models.items():
        # The target rule says whether the policy learned from delayed rewards.
        delayed = model.spec.model.target_rule == "constant"
        limit = None if dataset else bundles[label].data_settings.get("below_return")
        groups.setdefault((dataset or model.spec.dataset, delayed, limit), []).append(label)
    found: dict[str, PolicyExamination] = {}
    for (source, delayed, limit), members in groups.items():
        say(f"loading {source}", 0, 0)
        store = _load(source, delayed, limit, [models[label].spec for label in members])
        plan = parse_targets(targets, store.episode_returns)
        say(f"timing {', '.join(members)}", 0, 0)
        named = [(label, models[label]) for label in members]
        costs = cost.measure(named, store, precision=precision, seed=seed)
        for (label, model), measured in zip(named, costs, strict=True):
            say(f"{label}: attention and sensitivity", 0, 0)
            batches = list(_batches(store, num_windows, model.spec, seed))
            looked, felt, remarks = _inspect(model, batches, store)
            remarks += [] if dataset else _other_returns(model.spec, ReturnRange.of(store.episode_returns))
            courses: tuple[Course, ...] = ()
            if episodes > 0:
                courses, more = _roll(model, plan, label, say, env=env, episodes=episodes, seed=seed)
                remarks += more
            where = evaluated_in(model.spec, env) if env or model.spec.env else None
            found[label] = PolicyExamination(
                label=label,
                path=str(bundles[label].path),
                backbone=model.spec.model.backbone,
                env=None if where is None else where.id,
                dataset=source if limit is None else f"{source}, returns below {limit:g}",
                gradient_steps=bundles[label].gradient_steps,
                attention=looked,
                sensitivity=felt,
                courses=courses,
                cost=measured,
                remarks=tuple(remarks),
            )
    policies = tuple(found[label] for label in labels)
    return Examination(policies, windows=num_windows, episodes=episodes, seed=seed)


def _inspect(
    model: SequenceModel, batches: Sequence[Window[Tensor]], store: TrajectoryStore
) -> tuple[AttentionSummary | None, Sensitivity | None, list[str]]:
    """Return what windows of data tell, and why something is missing."""
    remarks: list[str] = []
    looked, felt = None, None
    try:
        looked = attention.summarize(model, batches)
    except UserError as error:
        remarks.append(f"attention: {error}")
    try:
        felt = conditioning.sensitivity(model, batches, ReturnRange.of(store.episode_returns))
    except UserError as error:
        remarks.append(f"sensitivity: {error}")
    return looked, felt, remarks


def _roll(
    model: SequenceModel,
    plan: TargetReturns,
    label: str,
    say: Progress,
    *,
    env: str | None,
    episodes: int,
    seed: int,
) -> tuple[tuple[Course, ...], list[str]]:
    """Return what rollouts tell, and what to keep in mind about them."""
    spec = model.spec
    if (env or spec.env) is None:
        return (), ["its environment is not recorded, so it was not rolled out; name one with --env"]
    if spec.model.target_rule == "predicted":
        return (), ["it predicts its own returns, so it was not rolled out: there is no target to follow"]
    total, done = len(plan.targets) * episodes, 0

    def count(finished: int) -> None:
        nonlocal done
        done += finished
        say(f"{label}: episodes", done, total)

    count(0)
    courses = conditioning.return_courses(
        model, plan.targets, env=env, episodes_per_target=episodes, seed=seed, progress=count
    )
    remarks = list(plan.warnings)
    if spec.model.target_rule == "constant":
        remarks.append("it is shown its target unchanged; the course tells what is left of it all the same")
    return courses, remarks


def _batches(store: TrajectoryStore, count: int, spec: PolicySpec, seed: int) -> Iterator[Window[Tensor]]:
    """Windows of the data, the same for all policies that see as many steps; few at a time, to spare memory."""
    rng = numpy_generator(seed, "diagnosis/windows")
    for begin in range(0, count, _BATCH):
        size = min(_BATCH, count - begin)
        yield windows.sample(store, rng, size, spec.acts_on, frame_stack=spec.model.frame_stack).to_torch()


def _other_returns(spec: PolicySpec, here: ReturnRange) -> list[str]:
    """Say so where the data are not all that a policy learned from, or more: older bundles do not know of filters."""
    learned = ReturnRange.recorded(spec)
    if learned is None or np.allclose(astuple(learned), astuple(here), rtol=1e-4):
        return []
    return [
        f"it learned from returns of {learned.minimum:,.4g} to {learned.maximum:,.4g}; those of the data here go from "
        f"{here.minimum:,.4g} to {here.maximum:,.4g}: targets and units are of the latter"
    ]


def _load(source: str, delayed: bool, limit: float | None, specs: Sequence[PolicySpec]) -> TrajectoryStore:
    store = learned_from(source, delayed, limit)
    for spec in specs:
        check_task(spec, store.info)
    return store


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct ends of the paths; the bundle inside a run goes by the run's name."""
    shown = [path.parent if path.name == "policy" else path for path in paths]
    return short_names(shown if len(set(shown)) == len(shown) else paths)
