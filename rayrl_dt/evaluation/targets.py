"""Which returns a policy is asked for: spread over the data's returns, or named by the user."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["ReturnRange", "TargetReturns", "parse_targets", "policy_targets"]

_IGNORED = (
    "the policy predicts its own returns and was asked for none: all episodes count as one target, and there is no "
    "alignment error"
)
_MOST = 1000
# Of the returns: percentiles that are nearer are apart by rounding alone, as policies read float32.
_SAME = 1e-6
_REMEDY = 'use "dataset:7", "dataset:max" or raw returns such as "500,1500,3000"'


@dataclass(frozen=True)
class ReturnRange:
    """Where the episode returns of a data set lie (raw returns).

    Attributes:
        minimum: the worst episode.
        p5: 5th percentile, NumPy's linear rule; the lowest target of `dataset:N`.
        p95: 95th percentile; the highest target of `dataset:N`.
        maximum: the best episode.
    """

    minimum: float
    p5: float
    p95: float
    maximum: float

    @classmethod
    def recorded(cls, policy: PolicySpec) -> ReturnRange | None:
        """Return the range of the data that a policy learned from, None if it does not know."""
        known = policy.data_returns
        return cls(known["min"], known["p5"], known["p95"], known["max"]) if known else None

    @classmethod
    def of(cls, returns: Sequence[float] | np.ndarray[Any, Any]) -> ReturnRange:
        """Return the range of `(E,)` raw episode returns.

        Raises:
            UserError: there is no return, or one is not finite.
        """
        values = np.asarray(returns, np.float64).ravel()
        if values.size == 0:
            raise UserError("the data set has no episode returns; choose a data set with episodes")
        if not np.isfinite(values).all():
            raise UserError("the data set has NaN or infinite episode returns; remove those episodes")
        p5, p95 = np.percentile(values, [5, 95])
        return cls(float(values.min()), float(p5), float(p95), float(values.max()))

    def to_json(self) -> dict[str, float]:
        """Return a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True)
class TargetReturns:
    """The target returns of an evaluation.

    Attributes:
        targets: raw returns, in the order asked for; ascending for `dataset:N`.
        data: where the data's returns lie, None if no data was at hand.
        warnings: one line each on what a reader of the results must know.
        ignored: whether the policy takes no notice of them; there is one then, in name only.
    """

    targets: tuple[float, ...]
    data: ReturnRange | None = None
    warnings: tuple[str, ...] = ()
    ignored: bool = False


def policy_targets(
    policy: PolicySpec,
    spec: str | float | Sequence[float],
    returns: Sequence[float] | np.ndarray[Any, Any] | None = None,
) -> TargetReturns:
    """Return what a policy is to be asked for; see `parse_targets`. Its own data count where no returns are given.

    A policy that predicts its own returns gets one nominal target, the highest, whatever the user wrote: the others
    would be the same episodes once more.
    """
    asked = parse_targets(spec, returns, data=ReturnRange.recorded(policy))
    if policy.model.target_rule != "predicted":
        return asked
    return replace(asked, targets=(max(asked.targets),), warnings=(_IGNORED,), ignored=True)


def parse_targets(
    spec: str | float | Sequence[float],
    returns: Sequence[float] | np.ndarray[Any, Any] | None = None,
    *,
    data: ReturnRange | None = None,
) -> TargetReturns:
    """Turn what a user wrote into target returns.

    `dataset:N` is N equally spaced targets from the 5th to the 95th percentile of the data's episode returns,
    as in the RADT paper's code; `dataset:1` is the 95th percentile and `dataset:max` the best episode. A number, a
    list of numbers or `"R1,R2"` are raw returns; one given twice counts once. Targets that no episode of the data
    reached are kept, with a warning: asking for them is a test of extrapolation, not of alignment.

    Args:
        spec: `"dataset:N"`, `"dataset:max"`, `"R1,R2"`, one number or several.
        returns: `(E,)` raw episode returns of the data that the policy learned from.
        data: their range, for callers that have no more than that (a policy bundle).

    Raises:
        UserError: the text cannot be read, or `dataset:N` is asked for without data.
    """
    if returns is not None and len(returns) > 0:
        data = ReturnRange.of(returns)
    if isinstance(spec, str) and spec.strip().lower().startswith("dataset"):
        if data is None:
            raise UserError(
                f"the targets {spec!r} need the data set's returns, which are not at hand; "
                'give raw returns instead, such as "500,1500,3000"'
            )
        if spec.strip().lower() == "dataset:max":
            return TargetReturns((data.maximum,), data)
        return _spread(_count(spec), data, spec)
    targets = _explicit(spec)
    if data is None:
        return TargetReturns(targets)
    outside = [f"{target:g}" for target in targets if not data.minimum <= target <= data.maximum]
    if not outside:
        return TargetReturns(targets, data)
    noun, verb = ("targets", "lie") if len(outside) > 1 else ("target", "lies")
    warning = (
        f"{noun} {', '.join(outside)} {verb} outside the data's returns "
        f"[{data.minimum:g}, {data.maximum:g}]: this asks the policy to extrapolate"
    )
    return TargetReturns(targets, data, (warning,))


def _count(spec: str) -> int:
    _, _, number = spec.partition(":")
    try:
        count = int(number)
    except ValueError:
        raise UserError(f"cannot read the targets {spec!r}; {_REMEDY}") from None
    if not 1 <= count <= _MOST:
        raise UserError(
            f"the targets {spec!r} ask for {count} targets; ask for 1 to {_MOST}, as in dataset:7"
        )
    return count


def _spread(count: int, data: ReturnRange, spec: str) -> TargetReturns:
    if count == 1:
        return TargetReturns((data.p95,), data)
    if data.p95 - data.p5 <= _SAME * max(abs(data.p5), abs(data.p95)):
        warning = (
            f"{spec!r} gives one target only, {data.p5:g}: the data's 5th and 95th percentile coincide, "
            "so alignment cannot be measured on this data"
        )
        return TargetReturns((data.p5,), data, (warning,))
    return TargetReturns(tuple(np.linspace(data.p5, data.p95, count).tolist()), data)


def _explicit(spec: str | float | Sequence[float]) -> tuple[float, ...]:
    several = np.atleast_1d(np.asarray(spec, dtype=object)).tolist
    parts: Sequence[Any] = spec.split(",") if isinstance(spec, str) else several()
    try:
        targets = tuple(dict.fromkeys(float(part) for part in parts))
    except (TypeError, ValueError):
        raise UserError(f"cannot read the targets {spec!r}; {_REMEDY}") from None
    if any(isinstance(part, bool) for part in parts):
        raise UserError(f"cannot read the targets {spec!r}; {_REMEDY}")
    if not targets:
        raise UserError(f"there are no targets; {_REMEDY}")
    if not all(math.isfinite(target) for target in targets):
        raise UserError(f"the targets {spec!r} are not all finite numbers; {_REMEDY}")
    return targets
