"""RLlib's own keys: those that something reads here, and what to set instead of well-known others."""

from __future__ import annotations

__all__ = ["READ", "remedy"]

READ: dict[str, tuple[str, ...]] = {
    "environment": ("env_config",),
    "offline_data": ("offline_data_class",),
    "rl_module": ("model_config", "rl_module_spec"),
    "training": (),
    "env_runners": (
        *(
            "env_runner_cls",
            "create_local_env_runner",
            "create_env_on_local_worker",
            "gym_env_vectorize_mode",
        ),
        *("num_cpus_per_env_runner", "num_gpus_per_env_runner", "custom_resources_per_env_runner"),
        "validate_env_runners_after_construction",
    ),
    "learners": (
        *("num_cpus_per_learner", "num_gpus_per_learner", "custom_resources_per_learner", "local_gpu_idx"),
        "learner_class",
    ),
    "evaluation": ("evaluation_parallel_to_training",),
    "fault_tolerance": (
        *("restart_failed_env_runners", "ignore_env_runner_failures", "max_num_env_runner_restarts"),
        *("delay_between_env_runner_restarts_s", "num_consecutive_env_runner_failures_tolerance"),
        *("env_runner_health_probe_timeout_s", "env_runner_restore_timeout_s"),
    ),
    "debugging": ("log_level",),
}
"""By section. Beside them our own settings name keys of RLlib's that every algorithm reads, such as `lr`.

All others were found unread, by a config that recorded who asked it for what: our runners have no connectors and no
sampler, our learners their own batches, optimizers and clipping, and our evaluation its own quotas.
"""

_DATA = "remove it: the data set says it"
_QUOTA = "set evaluation.episodes_per_target"
_NOISE = "set online.exploration_noise; evaluations never explore"
_BATCH = "set training.train_batch_size_per_learner"
_REMEDIES = {
    "environment": {
        "observation_space": _DATA,
        "action_space": _DATA,
        "clip_rewards": "wrap the environment, or set online.reward_scale for the critic",
        "clip_actions": "remove it: actions are within their bounds always",
        "normalize_actions": "remove it: policies act in [-1, 1], scaled to the bounds, always",
        "render_env": "use rayrl-dt eval on the run",
    },
    "offline_data": {"input_": "set offline_data.dataset"},
    "rl_module": {"algorithm_config_overrides_per_module": "set the keys themselves: there is one module"},
    "training": {
        "gamma": "set online.gamma for the critic that finetunes; policies on logged data discount nothing",
        "train_batch_size": _BATCH,
        "minibatch_size": _BATCH,
        "num_epochs": "set training.gradient_steps",
        "shuffle_batch_per_epoch": "remove it: windows are drawn at random always",
        "grad_clip_by": "set training.grad_clip, which bounds the norm of the whole gradient",
        "optimizer": "set online.optimizer of OnlineDT; policies on logged data have AdamW",
        "model": "set rl_module.model_config",
        "learner_class": "set learners.learner_class",
    },
    "env_runners": {
        "rollout_fragment_length": "remove it: whole episodes are collected, but by online.mode: async of OnlineDT",
        "batch_mode": "remove it: whole episodes are collected always",
        "explore": _NOISE,
        "exploration_config": _NOISE,
        "observation_filter": "remove it: observations are normalized by the data's statistics always",
    },
    "evaluation": {
        "evaluation_duration": _QUOTA,
        "evaluation_duration_unit": _QUOTA,
        "evaluation_config": "set the keys of section evaluation themselves",
        "custom_evaluation_function": "set evaluation.target_returns",
    },
}


def remedy(section: str, name: str) -> str:
    """Return what to do about a key that nothing reads."""
    return _REMEDIES.get(section, {}).get(name, "remove it")
