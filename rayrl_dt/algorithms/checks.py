"""What a config's values must be: the checks that all algorithms share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rayrl_dt.data.windows import WINDOW_STARTS
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.evaluation.targets import parse_targets
from rayrl_dt.objectives.offline import OBJECTIVES
from rayrl_dt.precision import PRECISIONS

if TYPE_CHECKING:
    from rayrl_dt.algorithms.config import SequenceConfig

__all__ = ["at_least", "check_values", "positive", "whole", "whole_or_null"]

_LR_DECAY = ("constant", "cosine")
_ACTION_SELECTION = ("auto", "mode", "sample")


def check_values(config: SequenceConfig) -> None:
    """Check every value that all algorithms share; the messages name the value, what is allowed and the remedy.

    Counts that came as 1e3 become 1000: here, so that they do wherever a config comes from (YAML, Python, Ray Tune).

    Raises:
        UserError: a value is out of range or unknown.
    """
    _ = config.sequence_model  # checks itself
    _check_data(config)
    _check_training(config)
    _check_objective(config)
    _check_evaluation(config)
    _check_processes(config)


def _check_data(config: SequenceConfig) -> None:
    if config.dataset is None:
        raise UserError(
            'no data set is given; set offline_data.dataset, for instance "recipe:pendulum-mixed"'
        )
    if config.top_percent is not None and not 0 < config.top_percent <= 100:
        raise UserError(
            f"offline_data.top_percent is {config.top_percent}; it must lie in (0, 100] or be null"
        )
    if config.window_starts not in WINDOW_STARTS:
        value = config.window_starts
        raise UserError(f"offline_data.window_starts is {value!r}.{suggest(value, WINDOW_STARTS)}")
    at_least(config, "offline_data", 0, "return_balance")
    if config.return_balance > 1:
        raise UserError(f"offline_data.return_balance is {config.return_balance}; it must lie in [0, 1]")


def _check_training(config: SequenceConfig) -> None:
    whole(config, "training", 1, "gradient_steps", "gradient_steps_per_iteration")
    whole(config, "training", 1, "train_batch_size_per_learner")
    whole(config, "training", 0, "warmup_steps")
    at_least(config, "training", 0, "weight_decay")
    if not isinstance(config.lr, (int, float)) or not config.lr > 0:
        raise UserError(f"training.lr is {config.lr!r}; it must be a positive number (see warmup_steps)")
    if config.lr_decay not in _LR_DECAY:
        raise UserError(f"training.lr_decay is {config.lr_decay!r}.{suggest(config.lr_decay, _LR_DECAY)}")
    if config.return_scale is not None and not config.return_scale > 0:
        raise UserError(f"training.return_scale is {config.return_scale}; it must be positive, or null")
    if config.precision not in PRECISIONS:
        raise UserError(f"training.precision is {config.precision!r}.{suggest(config.precision, PRECISIONS)}")
    if config.sequence_model.padding_mask == "inverted" and config.precision != "fp32":
        # -1e4 on every score leaves bf16 no digit of it.
        raise UserError(
            f"model_config.padding_mask inverted with training.precision {config.precision!r} would round all "
            "attention scores away; set training.precision: fp32"
        )


def _check_objective(config: SequenceConfig) -> None:
    value = config.objective
    if value not in OBJECTIVES:
        raise UserError(f"training.objective is {value!r}.{suggest(value, OBJECTIVES)}")
    at_least(config, "training", 0, "pg_weight")
    for name in ("awac_temperature", "awac_cap"):
        positive(config, name)
    asks, has = value != "imitation", (config.objective_critic, config.critic_hidden) != (None, None)
    if asks and not has:
        raise UserError(
            f"training.objective {value} asks a critic, and there is none; train one beside any policy of the same "
            "data with rayrl-dt critic RUN, and set training.critic_from: RUN"
        )
    if has and not asks:
        raise UserError(
            "training.critic_from is given, and training.objective imitation asks no critic; remove it, or set "
            "training.objective: pg or awac (evaluation.critic_from is for acting)"
        )


def _check_evaluation(config: SequenceConfig) -> None:
    whole(config, "evaluation", 1, "episodes_per_target", "max_evaluation_slots")
    whole_or_null(config, "evaluation", 0, "evaluation_interval")
    if config.action_selection not in _ACTION_SELECTION:
        value = config.action_selection
        raise UserError(f"evaluation.action_selection is {value!r}.{suggest(value, _ACTION_SELECTION)}")
    whole_or_null(config, "evaluation", 1, "evaluation_context_length")
    if (config.refinement is None) != (config.critic_from is None):
        how = "action_gradient" if config.sampled_actions is None else "sampled_actions"
        raise UserError(
            f"evaluation.{how} is {getattr(config, how)!r} and evaluation.critic_from {config.critic_from!r}; set both "
            "or neither (rayrl-dt critic RUN trains a critic)"
        )
    if isinstance(config.target_returns, str) and not config.target_returns.startswith("dataset:"):
        parse_targets(config.target_returns, None)


def _check_processes(config: SequenceConfig) -> None:
    whole(config, "env_runners", 0, "num_env_runners")
    whole(config, "env_runners", 1, "num_envs_per_env_runner")
    whole(config, "learners", 0, "num_learners")
    whole(config, "evaluation", 0, "evaluation_num_env_runners")


def whole(config: Any, section: str, least: int, *names: str) -> None:
    """Make each named value of the config an int; raise UserError unless it is a whole number of at least `least`."""
    for name in names:
        _make_whole(config, section, name, least, f"a whole number of at least {least}")


def whole_or_null(config: Any, section: str, least: int, *names: str) -> None:
    """Return what `whole` does, where null is a value too."""
    for name in names:
        if getattr(config, name) is not None:
            _make_whole(config, section, name, least, f"a whole number of at least {least}, or null")


def _make_whole(config: Any, section: str, name: str, least: int, allowed: str) -> None:
    value = getattr(config, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
        setattr(config, name, value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        finite = isinstance(value, float) and math.isfinite(value)
        near = f", for instance {max(round(value), least)}" if finite else ""
        raise UserError(f"{section}.{name} is {value!r}; it must be {allowed}{near}")


def at_least(config: Any, section: str, least: int, *names: str) -> None:
    """Raise UserError unless each named value of the config is a number of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise UserError(f"{section}.{name} is {value!r}; it must be a number of at least {least}")


def positive(config: Any, name: str, *, high: float | None = None) -> None:
    """Raise UserError unless a value of the section `training` is a positive number, and at most `high`."""
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not value > 0 or (high is not None and value > high):
        allowed = "a positive number" if high is None else f"a number in (0, {high:g}]"
        raise UserError(f"training.{name} is {value!r}; it must be {allowed}")
