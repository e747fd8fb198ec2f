"""What finetuning refuses since nothing would read it: a value that was chosen for another mode, gradient or head."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from rayrl_dt.algorithms.online.settings import CallSettings, OnlineSettings
from rayrl_dt.objectives.rl_gradients import RL_GRADIENTS
from rayrl_dt.settings import refuse_unread

if TYPE_CHECKING:
    from rayrl_dt.algorithms.online.config import OnlineConfig

__all__ = ["check_head", "check_settings"]


def check_settings(config: OnlineConfig) -> None:
    """Check that the mode and the gradient read what is set, before data fill in what is "auto".

    `rl_gradient: none` takes all that is said of critics, which it has none of: a comparison without them is one word.

    Raises:
        UserError: naming what would read it.
    """
    if config.mode == "sync":
        because, remedy = "online.mode: sync, which collects whole episodes", "set mode: async"
        ahead = ("max_policy_lag", "max_rounds_ahead")
        refuse_unread(CallSettings, config, because=because, remedy=remedy)
        refuse_unread(OnlineSettings, config, because=because, remedy=remedy, names=ahead)
    if config.rl_gradient == "none":
        return
    read = _names(config.rl_gradient)
    for name, gradient in RL_GRADIENTS.items():
        refuse_unread(
            gradient.reads,
            config,
            because=f"online.rl_gradient: {config.rl_gradient}",
            remedy=f"set rl_gradient: {name}",
            names=_names(name) - read,
        )


def check_head(config: OnlineConfig) -> None:
    """Check that the policy's head, once it is known, reads what is set of its noise and its entropy.

    Raises:
        UserError: naming the head that would read it.
    """
    name, head = config.resolved_spec.model.head, config.resolved_spec.head
    unread = [("exploration_noise", "deterministic")] if head.stochastic else []
    if head.target_entropy is None:
        unread += [("temperature_lr", "gaussian"), ("initial_temperature", "gaussian")]
    for setting, reader in unread:
        refuse_unread(
            OnlineSettings,
            config,
            because=f"model_config.head: {name}",
            remedy=f"set head: {reader}" if head.continuous else None,
            names=(setting,),
        )


def _names(gradient: str) -> set[str]:
    return {each.name for each in fields(RL_GRADIENTS[gradient].reads)}
