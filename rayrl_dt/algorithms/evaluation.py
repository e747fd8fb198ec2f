"""RLlib's evaluation step, replaced by ours: many targets, fixed quotas, spread over the runners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayrl_dt.data import scores
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import assemble
from rayrl_dt.evaluation.rollout import Rollouts, Slot, plan_slots
from rayrl_dt.evaluation.targets import parse_targets
from rayrl_dt.seeding import derive_seed

__all__ = ["ALIGNMENT", "evaluate_alignment"]

ALIGNMENT = "alignment"
_ATTEMPTS = 3


def evaluate_alignment(algorithm: Any, runners: Any) -> dict[str, Any]:
    """Evaluates the current weights.

    Args:
        algorithm: a `SequenceAlgorithm`.
        runners: its evaluation `EnvRunnerGroup`, weights already synchronised.

    Returns:
        Headline metrics, with the whole `EvaluationResult` as JSON under `alignment`.

    Raises:
        UserError: a part of the evaluation was lost for good with its runner.
    """
    config = algorithm.config
    info = algorithm.offline_data.full.info
    plan = parse_targets(config.target_returns, algorithm.offline_data.full.episode_returns)
    workers = max(1, runners.num_healthy_remote_workers())
    slots = plan_slots(
        plan.targets,
        config.episodes_per_target,
        max_slots=config.max_evaluation_slots * workers,
        seed=derive_seed(config.seed or 0, "evaluation"),
    )
    rollouts = _run(algorithm, runners, slots, sample_actions=config.samples_actions())
    reference, note = scores.reference_for(info, config.env)
    result = assemble(
        rollouts,
        plan,
        env=config.env,
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


@dataclass(frozen=True)
class _Evaluate:
    """The call that a remote runner gets; it names its part, since lost runners return nothing."""

    part: int
    slots: list[Slot]
    sample_actions: bool

    def __call__(self, runner: Any) -> tuple[int, Rollouts]:
        return self.part, runner.evaluate(self.slots, sample_actions=self.sample_actions)


def _run(algorithm: Any, runners: Any, slots: list[Slot], *, sample_actions: bool) -> Rollouts:
    """Runs the slots on the local runner, or in parts on the remote ones; a lost runner's part runs again."""
    if runners.num_remote_env_runners() == 0:
        rollouts: Rollouts = runners.local_env_runner.evaluate(slots, sample_actions=sample_actions)
        return rollouts
    count = max(1, runners.num_healthy_remote_workers())
    waiting = {part: slots[part::count] for part in range(count) if slots[part::count]}
    done: dict[int, Rollouts] = {}
    for _ in range(_ATTEMPTS):
        workers = list(runners.healthy_worker_ids())
        while waiting and workers:
            calls = [_Evaluate(part, part_slots, sample_actions) for part, part_slots in waiting.items()][
                : len(workers)
            ]
            results = runners.foreach_env_runner(
                calls, local_env_runner=False, remote_worker_ids=workers[: len(calls)]
            )
            for part, result in results:
                done[part] = result
                del waiting[part]
            if len(results) < len(calls):
                break  # a runner died: look again who is healthy
        if not waiting:
            break
        algorithm.restore_env_runners(runners)
        runners.sync_weights(from_worker_or_learner_group=algorithm.learner_group, inference_only=True)
    if waiting:
        raise UserError(
            f"{len(waiting)} of {count} parts of the evaluation were lost with their runners, {_ATTEMPTS} times: "
            "check the runners' memory and logs, then resume from the last checkpoint"
        )
    ordered = [done[part] for part in sorted(done)]
    return Rollouts(
        episodes=tuple(record for result in ordered for record in result.episodes),
        env_steps=sum(result.env_steps for result in ordered),
        seconds=max(result.seconds for result in ordered),
    )
