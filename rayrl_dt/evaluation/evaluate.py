"""Evaluating a policy network in this process, and turning rollouts into a result."""

from __future__ import annotations

import os
from collections.abc import Callable

from rayrl_dt.data.scores import ReferenceScore, reference_for
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.rollout import Rollouts, action_draws, assign_slots, run_slots
from rayrl_dt.evaluation.target_result import TargetResult
from rayrl_dt.evaluation.targets import TargetReturns, policy_targets
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import refiner_of
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import evaluated_in
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.refinement import choose_refinement
from rayrl_dt.policy.refiner import Refiner
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.seeding import derive_seed

__all__ = ["assemble", "evaluate_bundle", "evaluate_model"]


def evaluate_model(
    model: SequenceModel,
    asked: TargetReturns,
    *,
    env: str | RecordedEnv | None = None,
    episodes_per_target: int = 10,
    context_length: int | None = None,
    action_selection: str | None = None,
    guidance: float | None = None,
    precision: str = "fp32",
    max_slots: int = 32,
    seed: int = 0,
    refiner: Refiner | None = None,
    record: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Rollouts:
    """Run a policy on every target in one vector environment.

    Args:
        model: the policy network.
        asked: target returns.
        env: overrides the environment that the policy knows.
        episodes_per_target: fixed quota.
        context_length: steps that the policy sees, at most its K; None for the policy's own choice.
        action_selection: of discrete actions: "mode" the most likely, "sample" from the softmax; None for the policy's
            own choice. Continuous ones are always deterministic.
        guidance: how strongly the policy follows its return; None for the policy's own choice.
        precision: "fp32" or "bf16".
        max_slots: environments at a time (at least one per target).
        seed: of environments and sampled actions.
        refiner: improves each action with a critic; None leaves it.
        record: keep the episodes' steps.
        progress: called with the number of episodes that just ended.

    Raises:
        UserError: no environment is known, its spaces differ from the policy's, or the policy cannot act so.
    """
    spec = model.spec.acting(
        context_length=context_length, action_selection=action_selection, guidance=guidance
    )
    where = evaluated_in(spec, env)
    slots = assign_slots(
        asked.targets, episodes_per_target, max_slots=max_slots, seed=derive_seed(seed, "evaluation")
    )
    vector = where.make_vector(
        len(slots),
        spaces=(spec.observation_space, spec.action_space),
        flattening=spec.flattening,
    )
    try:
        sample = action_draws(spec, slots)
        actor = VectorActor(
            model,
            len(slots),
            sample=sample,
            context_length=spec.acts_on,
            precision=precision,
            guidance=spec.guidance,
        )
        actor.refiner = refiner
        return run_slots(Collector(vector, actor, record=record), slots, progress=progress)
    finally:
        vector.close()


def assemble(
    rollouts: Rollouts,
    asked: TargetReturns,
    *,
    env: str | None,
    dataset: str | None,
    reference: ReferenceScore | None,
    score_note: str | None,
    checkpoint: str | None = None,
    gradient_steps: int | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Group episodes by target and attaches what a reader must know.

    Args:
        rollouts: evaluated episodes.
        asked: the targets they were asked for.
        env: environment id.
        dataset: source id of the training data.
        reference: scores to normalize with, or None.
        score_note: where the reference comes from, or why there is none.
        checkpoint: what was evaluated.
        gradient_steps: behind the weights.
        seed: of the bootstrap intervals.
    """
    groups = [[e for e in rollouts.episodes if e.target == target] for target in asked.targets]
    return EvaluationResult(
        targets=tuple(
            TargetResult(target, tuple(e.episode_return for e in group), tuple(e.length for e in group))
            for target, group in zip(asked.targets, groups, strict=True)
        ),
        env=env,
        dataset=dataset,
        checkpoint=checkpoint,
        env_steps=rollouts.env_steps,
        env_steps_per_s=rollouts.env_steps / rollouts.seconds if rollouts.seconds > 0 else None,
        score_reference=None if reference is None else (reference.minimum, reference.maximum),
        score_note=score_note,
        data=asked.data,
        gradient_steps=gradient_steps,
        seed=seed,
        warnings=asked.warnings,
        targets_ignored=asked.ignored,
    )


def evaluate_bundle(
    path: str | os.PathLike[str] | Bundle,
    *,
    targets: str,
    episodes_per_target: int,
    env: str | RecordedEnv | None = None,
    context_length: int | None = None,
    action_selection: str | None = None,
    guidance: float | None = None,
    across_versions: bool = False,
    seed: int = 0,
    action_gradient: ActionGradient | None = None,
    sampled_actions: SampledActions | None = None,
    double_check: DoubleCheck | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Evaluate the policy of a bundle, checkpoint or run folder, by default as its training did.

    Args:
        path: where the policy is; one that is `trusting()` may run code of any package as its environment.
        targets: as for `parse_targets`; quantiles come from the bundle, so the data set is not needed.
        episodes_per_target: fixed quota.
        env: overrides the policy's environment.
        context_length: steps that the policy sees, at most its K; None for the policy's own choice.
        action_selection: of discrete actions, "mode" or "sample"; None for the policy's own choice.
        guidance: how strongly the policy follows its return, 1 as it was trained; None for the policy's own choice.
        across_versions: normalize with scores of another version of the environment.
        seed: of environments and sampled actions.
        action_gradient: refine each action with the bundle's critic. Compare with an evaluation without.
        sampled_actions: take the best of several actions, as that critic sees them, instead.
        double_check: take the action of one of several returns, as that critic chooses, instead; reads the policy's
            data.
        progress: called with (episodes done, episodes in total).

    Raises:
        UserError: there is no whole bundle, or no critic to act with; the targets cannot be read, the
            environment does not fit, or the policy cannot act so.
    """
    bundle = Bundle.open(path)
    model, spec = bundle.model, bundle.spec
    settings = choose_refinement(action_gradient, sampled_actions, double_check)
    refiner = None if settings is None else refiner_of(bundle, settings)
    asked = policy_targets(spec, targets)
    total, done = len(asked.targets) * episodes_per_target, 0

    def count(finished: int) -> None:
        nonlocal done
        done += finished
        if progress is not None:
            progress(done, total)

    where = evaluated_in(spec, env)
    rollouts = evaluate_model(
        model,
        asked,
        env=where,
        episodes_per_target=episodes_per_target,
        context_length=context_length,
        action_selection=action_selection,
        guidance=guidance,
        seed=seed,
        refiner=refiner,
        progress=count,
    )
    reference, note = reference_for(spec.dataset_info, where.id, across_versions=across_versions)
    return assemble(
        rollouts,
        asked,
        env=where.id,
        dataset=spec.dataset,
        reference=reference,
        score_note=note,
        checkpoint=str(bundle.path),
        gradient_steps=bundle.gradient_steps,
        seed=seed,
    )
