"""RLlib's own keys: those that something reads here, and what to set instead of well-known others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayrl_dt.errors import UserError, number
from rayrl_dt.settings import Check, automatic, choice, count, flag, real

__all__ = ["READ", "check", "remedy"]


def _anything(name: str, value: Any) -> Any:
    """Take a value that is checked where it is read."""
    return value


def _code(name: str, value: Any) -> Any:
    """Take a class, or what is built of one."""
    if value is None or not isinstance(value, (str, bytes, int, float, list, tuple, dict)):
        return value
    raise UserError(f"{name} is {value!r}; it must be a class, which only Python code can give: remove it")


def _resources(name: str, value: Any) -> Any:
    """Take amounts by their names."""
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {value!r}; write a mapping, such as {{accelerator: 1}}")
    return {kind: number(f"{name}.{kind}", amount, least=0) for kind, amount in value.items()}


_AMOUNT = real(least=0)
READ: dict[str, dict[str, Check]] = {
    "environment": {"env_config": _anything},
    "offline_data": {"offline_data_class": _code},
    "rl_module": {"model_config": _anything, "rl_module_spec": _code},
    "training": {},
    "env_runners": {
        "env_runner_cls": _code,
        "create_local_env_runner": flag(),
        "create_env_on_local_worker": flag(),
        "gym_env_vectorize_mode": _anything,
        "num_cpus_per_env_runner": _AMOUNT,
        "num_gpus_per_env_runner": _AMOUNT,
        "custom_resources_per_env_runner": _resources,
        "validate_env_runners_after_construction": flag(),
    },
    "learners": {
        "num_cpus_per_learner": automatic(_AMOUNT),
        "num_gpus_per_learner": _AMOUNT,
        "custom_resources_per_learner": _resources,
        "local_gpu_idx": count(),
        "learner_class": _code,
    },
    "evaluation": {},
    "fault_tolerance": {
        "restart_failed_env_runners": flag(),
        "ignore_env_runner_failures": flag(),
        "max_num_env_runner_restarts": count(),
        "delay_between_env_runner_restarts_s": _AMOUNT,
        "num_consecutive_env_runner_failures_tolerance": count(),
        "env_runner_health_probe_timeout_s": _AMOUNT,
        "env_runner_restore_timeout_s": _AMOUNT,
    },
    "debugging": {"log_level": choice("DEBUG", "INFO", "WARN", "ERROR", "SILENT")},
}
"""By section, each with its check. Beside them our own settings name keys of RLlib's that every algorithm reads,
such as `lr`.

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
        "evaluation_parallel_to_training": "remove it: evaluations are of the weights of one step, between two updates",
        "custom_evaluation_function": "set evaluation.target_returns",
    },
}


def remedy(section: str, name: str) -> str:
    """Return what to do about a key that nothing reads."""
    return _REMEDIES.get(section, {}).get(name, "remove it")


def check(config: object) -> None:
    """Check the values of RLlib's keys in a config; RLlib itself takes nearly any.

    Raises:
        UserError: one is not allowed.
    """
    values = vars(config)
    for section, keys in READ.items():
        for name, allowed in keys.items():
            value = values.get(f"_{name}", values.get(name))
            if value is not None:
                allowed(f"{section}.{name}", value)
