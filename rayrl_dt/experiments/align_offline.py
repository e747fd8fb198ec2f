"""Can the alignment error at each target be told from logged data alone? Estimates beside what episodes achieve.

Small policies that obey more and less well learn from one data set, or trained ones are given; of each,
`return_evaluation` estimates from its data what it would achieve for seven targets, and then the environment tells. Two
guesses that need no estimate stand beside it: that a policy achieves what it is asked for, and that it achieves the
data's mean whatever it is asked for. The estimate is of use where it misses by far less than either, and puts the
policies in the right order. Everything that can be refused is, before the first of them is trained or judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from rayrl_dt.critics.transitions import check_shapes
from rayrl_dt.data import sources, windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import whole
from rayrl_dt.evaluation.evaluate import evaluate_model
from rayrl_dt.evaluation.targets import TargetReturns, policy_targets
from rayrl_dt.experiments.return_evaluation import check_estimable, estimate, fit_evaluation
from rayrl_dt.experiments.return_model import Progress, unseen
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import run_data
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec, evaluated_in
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.reports.document import Block, Paragraph, Picture, Table, Tiles, number
from rayrl_dt.reports.page import result_folder, write_page
from rayrl_dt.reports.style import FAINT, canvas, legend_name, series_style, style_axes
from rayrl_dt.seeding import derive_seed, numpy_generator, seeded_weights

__all__ = ["DATASET", "POLICIES", "STEPS", "Candidate", "Outcome", "judge", "run", "train"]

DATASET = "recipe:pendulum-mixed"
STEPS = 1_500
"""Gradient steps of each small policy unless told otherwise."""
FIT_STEPS = 4
"""Times as many steps has each estimate."""
EPISODES = 10
SIZE: dict[str, Any] = {
    "context_length": 10,
    "embed_dim": 64,
    "num_layers": 2,
    "num_heads": 1,
    "dropout": 0.1,
}
POLICIES: dict[str, tuple[str, float]] = {
    "DT": ("dt", 1.0),
    "DT, a tenth of the steps": ("dt", 0.1),
    "RADT": ("radt", 1.0),
    "decoupled": ("decoupled", 1.0),
    "no return": ("no-return", 1.0),
}
"""By name: the backbone, and the share of the gradient steps."""
_BATCH, _RATE = 64, 1e-3
# What would be good enough to tell a user.
_SHARE, _ORDER = 0.25, 0.8


@dataclass(frozen=True)
class Candidate:
    """A policy that is to be judged.

    Attributes:
        spec: what it is made of.
        store: the data that it is judged on.
        gradient_steps: behind it, None if they are not recorded.
        policy: returns it, in eval mode; that may take its training.
    """

    spec: PolicySpec
    store: TrajectoryStore
    gradient_steps: int | None
    policy: Callable[[], SequenceModel]

    @property
    def asked(self) -> TargetReturns:
        """What it is asked for."""
        return policy_targets(self.spec, "dataset:7")


@dataclass(frozen=True)
class Outcome:
    """What became of one policy.

    Attributes:
        targets: raw.
        estimated: raw returns that were expected.
        achieved: raw mean returns of the episodes.
        mean: the mean return of its data, raw.
    """

    targets: tuple[float, ...]
    estimated: tuple[float, ...]
    achieved: tuple[float, ...]
    mean: float

    @property
    def error(self) -> float:
        """The measured alignment error."""
        return _distance(self.achieved, self.targets)

    @property
    def estimated_error(self) -> float:
        """The alignment error by the estimate."""
        return _distance(self.estimated, self.targets)

    @property
    def miss(self) -> float:
        """How far the estimated returns lie from those that were achieved."""
        return _distance(self.estimated, self.achieved)

    @property
    def blind_miss(self) -> float:
        """How far the mean of the data lies from them."""
        return _distance((self.mean,) * len(self.achieved), self.achieved)


def _distance(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return float(np.mean(np.abs(np.subtract(one, other))))


def train(spec: PolicySpec, store: TrajectoryStore, *, steps: int, seed: int) -> SequenceModel:
    """Return a small policy that imitates a store, in eval mode; a bare loop, without Ray."""
    with seeded_weights(seed, "init"):
        model = SequenceModel(spec).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rng = numpy_generator(seed, "batch", 0, step)
        window = windows.sample(store, rng, _BATCH, spec.model.context_length).to_torch()
        model.reseed(derive_seed(seed, "dropout", 0, step))
        optimizer.zero_grad(set_to_none=True)
        imitation_loss(model, model(window), window).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25, foreach=True)
        optimizer.step()
        schedule.step()
    return model.eval()


def judge(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return how good the estimates are."""
    every = list(outcomes.values())
    miss, trusting, blind = (
        float(np.mean([getattr(each, name) for each in every])) for name in ("miss", "error", "blind_miss")
    )
    order = None
    if len(every) > 1:
        ranked = stats.spearmanr([each.estimated_error for each in every], [each.error for each in every])
        order = float(ranked.statistic)
    estimated, achieved = (
        np.concatenate([np.subtract(getattr(each, side), each.targets) for each in every]) for side in _SIDES
    )
    correlation = float(np.corrcoef(estimated, achieved)[0, 1])
    return {
        "miss": miss,
        "miss_of_the_target": trusting,
        "miss_of_the_mean": blind,
        "correlation_of_errors": correlation,
        "order_of_policies": order,
        "holds": miss <= _SHARE * min(trusting, blind) and (order is None or order >= _ORDER),
    }


_SIDES = ("estimated", "achieved")


def run(
    folder: Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    dataset: str | None = None,
    runs: tuple[str, ...] = (),
    episodes: int = EPISODES,
    env: str | None = None,
    trust_environment: bool = False,
    progress: Progress = unseen,
) -> dict[str, Any]:
    """Estimate and measure, write `report.html`, and return what `result.json` holds.

    Args:
        folder: of the page.
        seed: of weights, batches and episodes.
        steps: of each small policy; each estimate has four times as many.
        dataset: source id of the data that all are judged on, and the small ones learn from; None for `DATASET`, and
            for each run the data that it learned from.
        runs: trained policies, to be judged instead of the small ones.
        episodes: for each target.
        env: overrides the environment of the data or runs.
        trust_environment: run the code that they name as their environment, whatever its package.
        progress: called with (policies done, policies in total).

    Raises:
        UserError: a policy cannot be judged on its data, there is no environment to measure in, an option cannot be, or
            the folder holds the result of other ones.
    """
    whole("--steps", steps, least=1)
    whole("--episodes", episodes, least=1)
    source = dataset if runs else dataset or DATASET
    settings = {
        "experiment": "align-offline",
        "seed": seed,
        "steps": steps,
        "dataset": source,
        "runs": list(runs),
        "episodes": episodes,
        "env": env,
    }
    candidates = dict(_trained(runs, source) if runs else _small(source or DATASET, seed=seed, steps=steps))
    places = {name: _place(each, env, trusting=trust_environment) for name, each in candidates.items()}
    result_folder(folder, settings)
    outcomes: dict[str, Outcome] = {}
    for name, each in candidates.items():
        outcomes[name] = _outcome(each, places[name], seed=seed, steps=FIT_STEPS * steps, episodes=episodes)
        progress(len(outcomes), len(candidates))
    result: dict[str, Any] = {
        **settings,
        "policies": {
            name: {
                "dataset": candidates[name].store.info.source,
                "data_mean": each.mean,
                "gradient_steps": candidates[name].gradient_steps,
                **{side: list(getattr(each, side)) for side in ("targets", *_SIDES)},
                "error": each.error,
                "estimated_error": each.estimated_error,
                "miss": each.miss,
            }
            for name, each in outcomes.items()
        },
        **judge(outcomes),
    }
    write_page(folder, "report", "Alignment from data alone", _report(result, _draw(outcomes)), result=result)
    return result


def _small(dataset: str, *, seed: int, steps: int) -> Iterator[tuple[str, Candidate]]:
    """Yield the small policies, by their names."""
    store = sources.load(dataset)
    for name, (backbone, share) in POLICIES.items():
        config = ModelConfig.from_dict({**SIZE, "backbone": backbone})
        spec, own = PolicySpec.from_store(config, store, return_scale=None), max(1, round(share * steps))
        yield name, Candidate(spec, store, own, partial(train, spec, store, steps=own, seed=seed))


def _trained(runs: tuple[str, ...], dataset: str | None) -> Iterator[tuple[str, Candidate]]:
    """Yield the policies of runs, by their names; all are opened before the data of one are loaded."""
    for name, bundle in {name: Bundle.open(name) for name in runs}.items():
        store = run_data(bundle) if dataset is None else sources.load(dataset)
        yield name, Candidate(bundle.spec, store, bundle.gradient_steps, bundle.model.eval)


def _place(each: Candidate, env: str | None, *, trusting: bool) -> RecordedEnv:
    """Return the environment to judge a policy in.

    Raises:
        UserError: the policy cannot be judged, not on these data, or not there.
    """
    spec = each.spec
    check_estimable(spec, each.asked.targets)
    check_shapes(each.store, spec)
    where = evaluated_in(spec, env)
    where = where.trusting() if trusting else where
    spaces = spec.observation_space, spec.action_space
    where.make_vector(1, spaces=spaces, flattening=spec.flattening).close()
    return where


def _outcome(each: Candidate, where: RecordedEnv, *, seed: int, steps: int, episodes: int) -> Outcome:
    model, asked = each.policy(), each.asked
    found = fit_evaluation(model, each.store, asked.targets, steps=steps, seed=seed)
    rollouts = evaluate_model(model, asked, env=where, episodes_per_target=episodes, seed=seed)
    achieved = tuple(
        float(np.mean([played.episode_return for played in rollouts.episodes if played.target == target]))
        for target in asked.targets
    )
    estimated = tuple(estimate(found, each.store, asked.targets))
    return Outcome(asked.targets, estimated, achieved, float(each.store.episode_returns.mean()))


def _draw(outcomes: dict[str, Outcome]) -> Figure:
    figure, (axes,) = canvas(1, 1, (6.4, 4.6))
    for index, (name, each) in enumerate(outcomes.items()):
        style = {**series_style(index), "ls": "", "ms": 6, "alpha": 0.8, "label": legend_name(name)}
        axes.plot(each.achieved, each.estimated, **style)
    ends = [value for each in outcomes.values() for value in (*each.achieved, *each.estimated)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=FAINT, lw=1)
    style_axes(axes, "What each target brings", "achieved (raw)", "estimated from data (raw)")
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def _report(result: dict[str, Any], figure: Figure) -> list[Block]:
    rows = [
        [name, *(number(row[key]) for key in ("error", "estimated_error", "miss"))]
        for name, row in result["policies"].items()
    ]
    verdict = "The estimate holds" if result["holds"] else "The estimate does not hold"
    alone = " One policy alone has no order." if result["order_of_policies"] is None else ""
    data = ", ".join(dict.fromkeys(row["dataset"] for row in result["policies"].values()))
    return [
        Paragraph(f"{data}, seed {result['seed']}, {result['episodes']} episodes a target", "muted"),
        Paragraph(
            f"{verdict}: it misses what a target brings by {number(result['miss'])} on average, the target itself by "
            f"{number(result['miss_of_the_target'])}."
        ),
        Tiles(
            [
                (
                    "Miss of the estimate",
                    number(result["miss"]),
                    "raw return, mean over targets and policies",
                ),
                ("Miss of the target itself", number(result["miss_of_the_target"]), "the measured error"),
                ("Miss of the data's mean", number(result["miss_of_the_mean"]), ""),
                ("Order of the policies", number(result["order_of_policies"], 2), "Spearman of the errors"),
            ]
        ),
        Picture("estimates.png", figure, "Estimated against achieved returns, one point a target and policy"),
        Table(["policy", "measured error", "estimated error", "miss"], rows),
        Paragraph(
            "The estimate holds where it misses by at most a quarter of what the better guess does, and where the "
            f"order of the policies has a Spearman of {_ORDER} or more.{alone} Errors at single targets correlate with "
            f"{number(result['correlation_of_errors'], 2)}."
        ),
    ]
