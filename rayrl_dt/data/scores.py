"""Reference scores: which raw returns count as 0 and as 100, for which environment, and who says so.

A score normalized with the references of another environment version is not comparable to anything: the
same policy earns different returns in Hopper-v2 and Hopper-v5. So references are bound to one environment
version, and crossing versions has to be asked for.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rayrl_dt.data.store import DatasetInfo

__all__ = [
    "D4RL_SCORES",
    "GAMER_SCORES",
    "ReferenceScore",
    "normalized",
    "parse_env_id",
    "recorded_scores",
    "reference_for",
]

Number = TypeVar("Number", float, np.ndarray[Any, Any])


@dataclass(frozen=True)
class ReferenceScore:
    """The raw returns that score 0 and 100.

    Attributes:
        minimum: raw return of a uniformly random policy.
        maximum: raw return of an expert.
        environment: the environment that they were measured in, for instance `Hopper-v2`.
        source: who published them.
    """

    minimum: float
    maximum: float
    environment: str
    source: str


_D4RL = "D4RL (Fu et al., 2020; d4rl/infos.py)"

D4RL_SCORES: dict[str, ReferenceScore] = {
    score.environment: score
    for score in (
        ReferenceScore(-20.272305, 3234.3, "Hopper-v2", _D4RL),
        ReferenceScore(-280.178953, 12135.0, "HalfCheetah-v2", _D4RL),
        ReferenceScore(1.629008, 4592.3, "Walker2d-v2", _D4RL),
        ReferenceScore(-325.6, 3879.7, "Ant-v2", _D4RL),
    )
}
"""By environment id."""

_GAMER = "gamer-normalized as in Decision Transformer (Chen et al., 2021), random play and a human gamer"

GAMER_SCORES: dict[str, ReferenceScore] = {
    score.environment: score
    for score in (
        ReferenceScore(2.0, 30.0, "ALE/Breakout-v5", _GAMER),
        ReferenceScore(164.0, 13455.0, "ALE/Qbert-v5", _GAMER),
        ReferenceScore(-21.0, 15.0, "ALE/Pong-v5", _GAMER),
        ReferenceScore(68.0, 42055.0, "ALE/Seaquest-v5", _GAMER),
    )
}
"""By environment id; of games without sticky actions, whatever the id's own default."""


def reference_for(
    info: DatasetInfo, env_id: str | None, *, across_versions: bool = False
) -> tuple[ReferenceScore | None, str]:
    """Find the reference scores for returns earned in `env_id`.

    The data set's own scores come first, then the table above. Scores made for another version of the
    environment are refused unless `across_versions`. A data set whose numbers are those of the table carries
    scores made for the table's environment, whichever environment its episodes come from.

    Args:
        info: of the data set that was trained on.
        env_id: of the environment that is evaluated, for instance `Hopper-v5`.
        across_versions: accept scores made for another version.

    Returns:
        The scores, or None, and one clause that says where they come from or why there are none.
    """
    if env_id is None:
        return None, "the environment is not known by id, so no reference scores apply"
    candidates = [score for score in (_own_scores(info), _from_table(env_id)) if score is not None]
    if not candidates:
        return None, f"no reference scores are known for {env_id}"
    candidate = next((score for score in candidates if score.environment == env_id), candidates[0])
    if candidate.environment == env_id:
        return candidate, f"{candidate.source}, for {env_id}"
    family, _ = parse_env_id(env_id)
    if parse_env_id(candidate.environment)[0] != family:
        return None, f"the known reference scores are for {candidate.environment}, not for {env_id}"
    what = f"({candidate.minimum:g}, {candidate.maximum:g}) of {candidate.source} were made for "
    if across_versions:
        return candidate, f"{what}{candidate.environment} and are used across versions for {env_id}"
    return None, (
        f"the reference scores {what}{candidate.environment}, not for {env_id}: normalized scores would not "
        "be comparable; rayrl-dt eval --across-versions uses them all the same"
    )


def normalized(reference: ReferenceScore, raw_return: Number) -> Number:
    """Return 100 (G - minimum) / (maximum - minimum) for raw returns G."""
    return 100.0 * (raw_return - reference.minimum) / (reference.maximum - reference.minimum)


def parse_env_id(env_id: str) -> tuple[str, int | None]:
    """Split `Hopper-v5` into its lower-case family and its version: ("hopper", 5)."""
    match = re.fullmatch(r"(.+?)(?:-v(\d+))?", env_id)
    if match is None:
        return env_id.lower(), None
    family, version = match.groups()
    return family.lower(), None if version is None else int(version)


def recorded_scores(info: DatasetInfo) -> tuple[float, float] | None:
    """Return the raw returns of a random policy and of an expert in the data set's metadata; None if they are none."""
    low, high = (_number(info.metadata.get(key)) for key in ("ref_min_score", "ref_max_score"))
    return None if low is None or high is None or high <= low else (low, high)


def _own_scores(info: DatasetInfo) -> ReferenceScore | None:
    """Return the scores in the data set's metadata, bound to the environment that they were really made for."""
    recorded = recorded_scores(info)
    if recorded is None:
        return None
    low, high = recorded
    for score in D4RL_SCORES.values():
        if math.isclose(low, score.minimum, rel_tol=1e-4) and math.isclose(high, score.maximum, rel_tol=1e-4):
            return score
    environment = info.metadata.get("environment") if info.env_spec is None else info.env_spec.id
    if not isinstance(environment, str):
        return None
    return ReferenceScore(low, high, environment, f"the data set {info.source}")


def _from_table(env_id: str) -> ReferenceScore | None:
    """Return the table's entry for the environment, if need be for another version of it."""
    family, _ = parse_env_id(env_id)
    known = (*D4RL_SCORES.values(), *GAMER_SCORES.values())
    return next((score for score in known if parse_env_id(score.environment)[0] == family), None)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
