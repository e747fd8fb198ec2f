"""How well the achieved returns match the asked ones: the metrics of an evaluation, and their JSON form.

All returns are raw. With G the return of an episode, Ḡ_k the mean over the episodes of target R_k:
E = mean_k |Ḡ_k - R_k|, the metric of RADT. E/(max R - min R) is comparable between environments and does not
change when rewards are rescaled. The mean of |G - R| over *episodes* is never smaller (Jensen): a policy that
hits its target only on average has a small E and a large per-episode error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rayrl_dt.errors import UserError, one_line
from rayrl_dt.evaluation.statistics import Interval, stratified_bootstrap
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.evaluation.targets import ReturnRange

__all__ = ["EvaluationResult", "blind_error"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation of one policy over all of its targets.

    Attributes:
        targets: the episodes of each target.
        env: environment id with its version.
        dataset: source id of the data that the policy learned from.
        checkpoint: what was evaluated.
        env_steps: environment steps taken, those of surplus episodes included.
        env_steps_per_s: rollout speed.
        score_reference: raw returns (of a random, of an expert policy) that score 0 and 100.
        score_note: where the reference comes from, or why there is none.
        data: where the returns of the data lie.
        gradient_steps: gradient steps behind the evaluated weights.
        seed: of the bootstrap.
        warnings: one line each.
        targets_ignored: whether the policy was asked for nothing, because it predicts its own returns. Then `targets`
            holds all episodes under one nominal target, and every measure of alignment is None.

    Raises:
        UserError: there is no target, or the reference is not a (low, high) pair.
    """

    targets: tuple[TargetResult, ...]
    env: str | None = None
    dataset: str | None = None
    checkpoint: str | None = None
    env_steps: int | None = None
    env_steps_per_s: float | None = None
    score_reference: tuple[float, float] | None = None
    score_note: str | None = None
    data: ReturnRange | None = None
    gradient_steps: int | None = None
    seed: int = 0
    warnings: tuple[str, ...] = ()
    targets_ignored: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("env_steps", int), ("env_steps_per_s", float), ("gradient_steps", int)):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else kind(value))
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "warnings", tuple(self.warnings))
        if not self.targets:
            raise UserError("an evaluation needs at least one target; see --targets")
        if self.targets_ignored and len(self.targets) > 1:
            raise UserError(
                f"the evaluation has {len(self.targets)} targets, and its policy ignores them; give it one"
            )
        if self.score_reference is not None:
            low, high = (float(value) for value in self.score_reference)
            object.__setattr__(self, "score_reference", (low, high))
            if not (low < high and math.isfinite(high - low)):
                raise UserError(f"the reference scores ({low:g}, {high:g}) must be (low, high); correct them")

    @cached_property
    def alignment_error(self) -> float | None:
        """E, in raw return; None if the policy was asked for nothing."""
        if self.targets_ignored:
            return None
        return float(np.mean(np.abs(self._means - self._asked)))

    @property
    def alignment_error_relative(self) -> float | None:
        """E over the span of the targets; None if they do not span anything."""
        span = float(np.ptp(self._asked))
        return self.alignment_error / span if span > 0 and self.alignment_error is not None else None

    @property
    def alignment_error_points(self) -> float | None:
        """E in points of the normalized score; None without a reference or without E."""
        if self.score_reference is None or self.alignment_error is None:
            return None
        return 100 * self.alignment_error / (self.score_reference[1] - self.score_reference[0])

    @cached_property
    def alignment_error_interval(self) -> Interval | None:
        """E with its 95% bootstrap interval over episodes; None without E.

        The episodes of one place begin alike for all targets, so they are drawn together.
        """
        if self.targets_ignored:
            return None
        asked = self._asked[:, None]

        def error(draws: Sequence[Array]) -> Array:
            result: Array = np.abs(np.stack([draw.mean(axis=1) for draw in draws]) - asked).mean(axis=0)
            return result

        returns = [item.returns for item in self.targets]
        return stratified_bootstrap(returns, error, seed=self.seed, paired=True)

    @property
    def per_episode_error(self) -> float | None:
        """Mean over the targets of the mean of |G - R| over their episodes, in raw return; None without E."""
        if self.targets_ignored:
            return None
        return float(np.mean([np.abs(np.subtract(t.returns, t.target)).mean() for t in self.targets]))

    @property
    def spearman(self) -> float | None:
        """Rank correlation of asked and mean achieved return, ties averaged; None if either is constant."""
        if np.ptp(self._asked) == 0 or np.ptp(self._means) == 0:
            return None
        from scipy import stats  # half a second, which every process's start would take otherwise

        return round(float(stats.spearmanr(self._asked, self._means).statistic), 12)

    @property
    def highest(self) -> TargetResult:
        """The highest target: the one to quote, since picking the best achiever would be a silent choice."""
        return max(self.targets, key=lambda item: item.target)

    @property
    def normalized_score(self) -> float | None:
        """100 (Ḡ - low) / (high - low) of the *highest target*; None without a reference."""
        if self.score_reference is None:
            return None
        low, high = self.score_reference
        return 100 * (self.highest.return_mean - low) / (high - low)

    @cached_property
    def _asked(self) -> Array:
        return np.array([item.target for item in self.targets])

    @cached_property
    def _means(self) -> Array:
        return np.array([item.return_mean for item in self.targets])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict of finite numbers: metrics, then what is needed to compute them again."""
        interval, rate = self.alignment_error_interval, self.env_steps_per_s
        return {
            "targets": [item.to_json() for item in self.targets],
            "alignment_error": self.alignment_error,
            "alignment_error_relative": self.alignment_error_relative,
            "per_episode_error": self.per_episode_error,
            "spearman": self.spearman,
            "normalized_score": self.normalized_score,
            "env_steps": self.env_steps,
            "env_steps_per_s": rate if rate is not None and math.isfinite(rate) else None,
            "env": self.env,
            "dataset": self.dataset,
            "checkpoint": self.checkpoint,
            "alignment_error_interval": None if interval is None else [interval.low, interval.high],
            "alignment_error_points": self.alignment_error_points,
            "normalized_score_target": None
            if self.score_reference is None or self.targets_ignored
            else self.highest.target,
            "score_reference": None if self.score_reference is None else list(self.score_reference),
            "score_note": self.score_note,
            "data": None if self.data is None else self.data.to_json(),
            "gradient_steps": self.gradient_steps,
            "seed": self.seed,
            "warnings": list(self.warnings),
            "targets_ignored": self.targets_ignored,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EvaluationResult:
        """Inverse of `to_json`; the metrics are computed again from the episodes.

        Raises:
            UserError: the dict is not one that `to_json` made.
        """
        try:
            reference, data = values.get("score_reference"), values.get("data")
            return cls(
                targets=tuple(TargetResult.from_json(item) for item in values["targets"]),
                env=values.get("env"),
                dataset=values.get("dataset"),
                checkpoint=values.get("checkpoint"),
                env_steps=values.get("env_steps"),
                env_steps_per_s=values.get("env_steps_per_s"),
                score_reference=None if reference is None else (reference[0], reference[1]),
                score_note=values.get("score_note"),
                data=None if data is None else ReturnRange(**data),
                gradient_steps=values.get("gradient_steps"),
                seed=int(values.get("seed") or 0),
                warnings=tuple(values.get("warnings") or ()),
                targets_ignored=bool(values.get("targets_ignored", False)),
            )
        except UserError:
            raise
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"not an evaluation result ({type(error).__name__}: {one_line(error)}); "
                "write it with rayrl-dt eval --json"
            ) from error


def blind_error(targets: Sequence[float]) -> float | None:
    """Return the relative error of a policy that always achieves the middle target, whatever it is asked.

    No policy that ignores its target does better; 0.286 for seven equally spaced targets. None if the targets
    do not span anything.
    """
    span = float(np.ptp(targets))
    return float(np.mean(np.abs(np.subtract(targets, np.median(targets))))) / span if span > 0 else None
