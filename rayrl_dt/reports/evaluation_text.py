"""What an evaluation says: its row of metrics, and plain sentences made from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayrl_dt.evaluation.result import EvaluationResult, blind_error
from rayrl_dt.reports.document import MISSING, decimals, number

__all__ = ["LEGEND", "METRICS", "compare", "describe", "metrics", "places_of"]

_MOVES = 0.1
"""Of the span of the targets: what returns that lie nearer together tell of order may be noise."""
METRICS = ("E [95%]", "E / span", "Per episode", "Spearman", "At highest target", "Score")
"""Column names of `metrics`."""

LEGEND = (
    "E is the mean over the targets of |mean achieved return - target|, in raw return; the interval is a "
    "bootstrap over episodes, those that begin alike together. E / span divides it by the span of the targets. "
    "Per episode, |return - target| is averaged over episodes instead, so that spread counts too. The score is "
    "normalized, at the highest target."
)
"""Explains `METRICS` to a reader."""


def describe(
    last: EvaluationResult, best: EvaluationResult | None = None, *, data_max: float | None = None
) -> list[str]:
    """Return a few sentences: how the last checkpoint follows its targets, how the best one differs."""
    sentences = [_following(last)]
    if len(last.targets) > 1 and last.alignment_error:
        sentences.append(_largest_gap(last))
    if data_max is not None and last.highest.return_mean > data_max and not last.targets_ignored:
        top = last.highest
        sentences.append(
            f"Asked for {number(top.target)} it achieved {number(top.return_mean)}: "
            f"more than the best episode of the data ({number(data_max)})."
        )
    if best is not None:
        sentences.append(_last_and_best(last, best))
    return sentences


def compare(groups: Mapping[str, Sequence[EvaluationResult]]) -> list[str]:
    """Return sentences that rank groups of seeds by the relative error of their last checkpoints."""
    ranges: dict[str, tuple[float, float, float]] = {}
    for label, results in groups.items():
        errors = [error for result in results if (error := result.alignment_error_relative) is not None]
        interval = results[0].alignment_error_interval
        if len(errors) > 1:
            ranges[label] = (sum(errors) / len(errors), min(errors), max(errors))
        elif errors and interval is not None:
            # One seed: its episodes are the only noise that can be seen.
            scale = errors[0] / results[0].alignment_error if results[0].alignment_error else 0.0
            ranges[label] = (errors[0], interval.low * scale, interval.high * scale)
    if len(ranges) < 2:
        return []
    order = sorted(ranges, key=lambda label: ranges[label][0])
    first, second = order[:2]
    listed = ", ".join(f"{label} {number(ranges[label][0], 3)}" for label in order)
    sentences = [f"Relative alignment error of the last checkpoints, smallest first: {listed}."]
    if ranges[first][2] >= ranges[second][1]:
        sentences.append(
            f"The ranges of {first} and {second} overlap, so their order may be noise: "
            "run more seeds or episodes."
        )
    if any(len(results) == 1 for results in groups.values()):
        sentences.append("A single seed says nothing about the spread between seeds.")
    return sentences


def metrics(result: EvaluationResult) -> list[str]:
    """Return one formatted cell for each of `METRICS`."""
    interval, places = result.alignment_error_interval, places_of(result)
    error = MISSING
    if interval is not None:
        low, high = number(interval.low, places), number(interval.high, places)
        error = f"{number(interval.estimate, places)} [{low}, {high}]"
    return [
        error,
        number(result.alignment_error_relative, 3),
        number(result.per_episode_error, places),
        number(result.spearman, 2),
        number(result.highest.return_mean, places),
        number(result.normalized_score, 1),
    ]


def places_of(result: EvaluationResult) -> int:
    """Return the decimal places in which the raw returns of an evaluation are shown."""
    return decimals(value for item in result.targets for value in (item.target, item.return_mean))


def _following(result: EvaluationResult) -> str:
    error, rho = result.alignment_error_relative, result.spearman
    if result.targets_ignored:
        return (
            "The policy predicts its own returns and was asked for none; the last checkpoint achieved "
            f"{number(result.highest.return_mean, places_of(result))} on average."
        )
    blind = blind_error([item.target for item in result.targets])
    if error is None or blind is None:
        item, places = result.highest, places_of(result)
        return (
            f"Asked for {number(item.target, places)}, the last checkpoint achieved "
            f"{number(item.return_mean, places)} on average; "
            "how well it follows its target needs several targets."
        )
    share = _achieved_share(result)
    if rho is None:
        verdict = "achieves the same return whatever it is asked for"
    elif share < _MOVES:
        verdict = (
            f"hardly moves with what it is asked for (its returns span {share:.0%} of what the targets span)"
        )
    elif error < 0.4 * blind and rho >= 0.9:
        verdict = "follows the asked return closely"
    elif error < 0.75 * blind and rho >= 0.7:
        verdict = "follows the asked return, with visible gaps"
    elif rho >= 0.9:
        verdict = "orders its returns as asked but misses their level"
    elif rho >= 0.5 and error < blind:
        verdict = "follows the asked return weakly"
    else:
        verdict = "does not follow the asked return"
    return (
        f"The last checkpoint {verdict}: Spearman {number(rho, 2)}, alignment error {number(error, 3)} of "
        "the span of the targets; a policy blind to its target, always at the middle one, scores "
        f"{number(blind, 3)}."
    )


def _achieved_share(result: EvaluationResult) -> float:
    """Return how far the mean returns lie apart, in spans of the targets: ranks alone make order of noise."""
    achieved = [item.return_mean for item in result.targets]
    asked = [item.target for item in result.targets]
    return (max(achieved) - min(achieved)) / (max(asked) - min(asked))


def _largest_gap(result: EvaluationResult) -> str:
    item = max(result.targets, key=lambda target: abs(target.return_mean - target.target))
    gap = item.return_mean - item.target
    total = sum(abs(target.return_mean - target.target) for target in result.targets)
    places = places_of(result)
    return (
        f"The largest gap is at target {number(item.target, places)}, where it achieved "
        f"{number(item.return_mean, places)} ({number(abs(gap), places)} too "
        f"{'high' if gap > 0 else 'low'}): {abs(gap) / total:.0%} of the summed error."
    )


def _last_and_best(last: EvaluationResult, best: EvaluationResult) -> str:
    if best == last or (best.gradient_steps is not None and best.gradient_steps == last.gradient_steps):
        return "The last checkpoint is also the best one that was evaluated."
    single = len(last.targets) == 1
    name = "return" if single else "alignment error"
    a, b = (result.highest.return_mean if single else result.alignment_error for result in (last, best))
    places = places_of(last)
    at = "" if best.gradient_steps is None else f" (gradient step {best.gradient_steps:,})"
    return (
        f"The best checkpoint{at} has {name} {number(b, places)} against {number(a, places)} of the "
        "last; it was chosen by such evaluations, so it flatters, and the last is the one to quote."
    )
