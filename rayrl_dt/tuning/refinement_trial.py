"""One trial of a sweep that only evaluates: a way to act, mostly with the critic, of a checkpoint that stays loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray import tune

from rayrl_dt.algorithms.learner import GRADIENT_STEPS
from rayrl_dt.evaluation.evaluate import assemble
from rayrl_dt.evaluation.refined_policy import RefinedPolicy
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.refinement import WayToAct
from rayrl_dt.tuning.refinement_job import RefinementJob, read_refinement_job

__all__ = ["RefinementTrial"]


class RefinementTrial(tune.Trainable):
    """Evaluates the action gradient, sampled actions, double check or guidance that Ray Tune drew, in one report.

    Policy, critic and environments stay where they are from one trial to the next; only another seed, target or run
    loads them anew. What the same episodes give without stands beside each report under
    `unrefined`: it is what a trial is to be compared with.
    """

    job: RefinementJob
    policy: RefinedPolicy
    unrefined: dict[str, float | None]

    def setup(self, config: dict[str, Any]) -> None:
        """Load policy, critic and environments, and evaluate the policy alone."""
        self.job = read_refinement_job(config)
        asked = {name: getattr(self.job, name) for name in ("targets", "episodes", "env", "seed")}
        guided = isinstance(self.job.settings, Guidance)
        self.policy = RefinedPolicy(self.job.policy, **asked, asks_critic=not guided)
        self.unrefined = self._evaluate(Guidance(1.0) if guided else None)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial's way to act."""
        job = read_refinement_job(new_config)
        if replace(job, settings=self.job.settings) != self.job:
            self.cleanup()
            self.setup(new_config)
        self.job = job
        return True

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Return one CPU, for the critic is small."""
        return tune.PlacementGroupFactory([{"CPU": 1.0}])

    def step(self) -> dict[str, Any]:
        """Play the episodes; the trial is done then."""
        return {
            "evaluation": self._evaluate(self.job.settings),
            "unrefined": self.unrefined,
            GRADIENT_STEPS: self.policy.bundle.gradient_steps or 0,
            "done": True,
        }

    def cleanup(self) -> None:
        """Close the environments."""
        self.policy.close()

    def _evaluate(self, settings: WayToAct | None) -> dict[str, float | None]:
        policy = self.policy
        result = assemble(
            policy.run(settings),
            policy.asked,
            env=policy.env,
            dataset=policy.bundle.spec.dataset,
            reference=None,
            score_note=None,
            seed=self.job.seed,
        )
        returns = [target.return_mean for target in result.targets]
        others = ("alignment_error", "alignment_error_relative", "spearman")
        return {"return_mean": sum(returns) / len(returns)} | {name: getattr(result, name) for name in others}
