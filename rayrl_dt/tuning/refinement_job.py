"""A sweep over ways to act with a critic: a file that names a trained run, no algorithm, and only evaluates it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayrl_dt.errors import UserError, suggest, truth, whole
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.refinement import WayToAct, choose_refinement
from rayrl_dt.policy.sampled_actions import SampledActions

__all__ = ["RUN", "RefinementJob", "read_refinement_job"]

RUN = "run"
_WAYS = ("action_gradient", "sampled_actions", "double_check", "guidance")
_KEYS: dict[str, tuple[str, ...]] = {
    "environment": ("env", "trust_environment"),
    "evaluation": ("target_returns", "episodes_per_target", *_WAYS),
    "debugging": ("seed",),
}
_TOP_LEVEL = ("name", "description", RUN, *_KEYS, "tune")


@dataclass(frozen=True)
class RefinementJob:
    """What one trial evaluates.

    Attributes:
        run: run folder, checkpoint or bundle, with a critic where one is asked.
        targets: as for `parse_targets`.
        episodes: per target.
        env: overrides the policy's environment.
        trust_environment: run code of any package that the policy names as its environment.
        seed: of the episodes.
        settings: of the action gradient, the sampled actions, the double check or the guidance.
    """

    run: str
    targets: str
    episodes: int
    env: str | None
    trust_environment: bool
    seed: int
    settings: WayToAct

    @property
    def policy(self) -> Bundle:
        """The policy of the run."""
        bundle = Bundle.open(self.run)
        return bundle.trusting() if self.trust_environment else bundle

    @property
    def command(self) -> str:
        """The command that evaluates the same on its own."""
        option = f"--{self.settings.section.replace('_', '-')}"
        how = ",".join(f"{key}={value}" for key, value in self.settings.to_json().items())
        if isinstance(self.settings, Guidance):
            how = str(self.settings.weight)
        place = [] if self.env is None else ["--env", self.env]
        place += ["--trust-environment"] if self.trust_environment else []
        asked = [f"--targets={self.targets}", "--episodes", str(self.episodes)]
        return shlex.join(
            ["rayrl-dt", "eval", self.run, *asked, *place, "--seed", str(self.seed), option, how]
        )


def read_refinement_job(values: Mapping[str, Any]) -> RefinementJob:
    """Read a file's content that holds no search space any more; bad keys and values raise `UserError`."""
    for key in values:
        if key == "algorithm":
            raise UserError(
                f"this file has both {RUN} and algorithm; keep {RUN} to evaluate, algorithm to train"
            )
        if key not in _TOP_LEVEL:
            raise UserError(f"unknown section {key!r} beside {RUN}.{suggest(str(key), _TOP_LEVEL)}")
    chosen: dict[str, dict[str, Any]] = {}
    for section, known in _KEYS.items():
        found = values.get(section) or {}
        if not isinstance(found, dict):
            raise UserError(f"section {section} must be a mapping, it is {found!r}")
        for key in found:
            if key not in known:
                raise UserError(f"{section} has no key {key!r} beside {RUN}.{suggest(str(key), known)}")
        chosen[section] = found
    run, evaluation = values.get(RUN), chosen["evaluation"]
    if not isinstance(run, str) or not run:
        raise UserError(f"{RUN} is {run!r}; name a run folder, a checkpoint or a policy bundle")
    return RefinementJob(
        run=run,
        targets=_targets(evaluation.get("target_returns", "dataset:max")),
        episodes=whole("evaluation.episodes_per_target", evaluation.get("episodes_per_target", 10), least=1),
        env=chosen["environment"].get("env"),
        trust_environment=truth(
            "environment.trust_environment", chosen["environment"].get("trust_environment", False)
        ),
        seed=whole("debugging.seed", chosen["debugging"].get("seed", 0), least=0),
        settings=_settings(*(evaluation.get(way) for way in _WAYS)),
    )


def _settings(gradient: Any, sampled: Any, checked: Any, guidance: Any) -> WayToAct:
    """How to act; an action gradient by its defaults if neither is given."""
    if guidance is not None:
        if (gradient, sampled, checked) != (None, None, None):
            raise UserError(
                f"evaluation.guidance is {guidance!r} beside a way to act with a critic; search one of them at a time"
            )
        return Guidance.from_value(guidance)
    found = choose_refinement(
        None if gradient is None else ActionGradient.read(gradient),
        None if sampled is None else SampledActions.from_value(sampled),
        None if checked is None else DoubleCheck.read(checked),
    )
    return ActionGradient() if found is None else found


def _targets(value: Any) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
