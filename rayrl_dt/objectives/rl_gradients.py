"""The RL gradients by their names in `online.rl_gradient`; another one is a class and a row here."""

from __future__ import annotations

from rayrl_dt.objectives.expected_q import ExpectedQ
from rayrl_dt.objectives.gradient import GradientSettings, RLGradient
from rayrl_dt.objectives.online_q_align import OnlineQAlign
from rayrl_dt.objectives.online_weighted import OnlineAWAC, OnlinePG
from rayrl_dt.objectives.sac import SAC
from rayrl_dt.objectives.td3 import TD3

__all__ = ["RL_GRADIENTS", "gradient_settings", "logged"]

RL_GRADIENTS: dict[str, type[RLGradient]] = {
    "td3": TD3,
    "sac": SAC,
    "pg": OnlinePG,
    "awac": OnlineAWAC,
    "q_align": OnlineQAlign,
    "expected_q": ExpectedQ,
    "none": RLGradient,
}


def gradient_settings() -> tuple[type[GradientSettings], ...]:
    """Return what any of them may be told; a name that several have is one setting."""
    return tuple(dict.fromkeys(gradient.reads for gradient in RL_GRADIENTS.values()))


def logged() -> tuple[str, ...]:
    """Return what any of them logs."""
    return tuple(dict.fromkeys(name for gradient in RL_GRADIENTS.values() for name in gradient.logs))
