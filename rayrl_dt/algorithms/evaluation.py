"""RLlib's evaluation step, replaced by ours: many targets, fixed quotas, spread over the runners."""

from __future__ import annotations

from typing import Any

from rayrl_dt.algorithms.runners.synchronous import Evaluate, run_on_runners
from rayrl_dt.data import scores
from rayrl_dt.evaluation.evaluate import assemble
from rayrl_dt.evaluation.rollout import assign_slots
from rayrl_dt.evaluation.targets import policy_targets
from rayrl_dt.seeding import derive_seed

__all__ = ["ALIGNMENT", "evaluate_alignment"]

ALIGNMENT = "alignment"


def evaluate_alignment(algorithm: Any, runners: Any) -> dict[str, Any]:
    """Evaluate the current weights.

    Args:
        algorithm: a `SequenceAlgorithm`.
        runners: its evaluation `EnvRunnerGroup`, weights already synchronized.

    Returns:
        Headline metrics, with the whole `EvaluationResult` as JSON under `alignment`.

    Raises:
        UserError: a part of the evaluation was lost for good with its runner.
    """
    config = algorithm.config
    info = algorithm.offline_data.full.info
    returns = algorithm.offline_data.full.episode_returns
    spec = config.resolved_spec
    asked = policy_targets(spec, config.target_returns, returns)
    # Not those that are there: a lost runner changes no figure.
    workers = max(1, runners.num_remote_env_runners())
    slots = assign_slots(
        asked.targets,
        config.episodes_per_target,
        max_slots=config.max_evaluation_slots * workers,
        seed=derive_seed(config.seed or 0, "evaluation"),
    )
    rollouts = run_on_runners(algorithm, runners, slots, Evaluate(spec.samples_actions))
    env = config.rollout_env.for_evaluation.id
    reference, note = scores.reference_for(info, env)
    result = assemble(
        rollouts,
        asked,
        env=env,
        dataset=config.dataset,
        reference=reference,
        score_note=note,
        gradient_steps=algorithm.gradient_steps,
        seed=config.seed or 0,
    )
    return {
        "return_mean": sum(target.return_mean for target in result.targets) / len(result.targets),
        "alignment_error": result.alignment_error,
        "alignment_error_relative": result.alignment_error_relative,
        "spearman": result.spearman,
        ALIGNMENT: result.to_json(),
    }
