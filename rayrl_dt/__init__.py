"""Ray-distributed offline-to-online RL for return-conditioned transformers.

Public names are imported on first use, so that `import rayrl_dt` does not import Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayrl_dt.algorithms.bc import BC, BCConfig
    from rayrl_dt.algorithms.dt import DT, DTConfig
    from rayrl_dt.algorithms.online_dt import OnlineDT, OnlineDTConfig
    from rayrl_dt.algorithms.radt import RADT, RADTConfig
    from rayrl_dt.algorithms.reinformer import Reinformer, ReinformerConfig
    from rayrl_dt.data.sources import load as load_dataset
    from rayrl_dt.errors import UserError
    from rayrl_dt.policy.action_gradient import ActionGradient
    from rayrl_dt.policy.sequence_policy import SequencePolicy

_HOMES = {
    "ActionGradient": ("rayrl_dt.policy.action_gradient", "ActionGradient"),
    "BC": ("rayrl_dt.algorithms.bc", "BC"),
    "BCConfig": ("rayrl_dt.algorithms.bc", "BCConfig"),
    "DT": ("rayrl_dt.algorithms.dt", "DT"),
    "DTConfig": ("rayrl_dt.algorithms.dt", "DTConfig"),
    "OnlineDT": ("rayrl_dt.algorithms.online_dt", "OnlineDT"),
    "OnlineDTConfig": ("rayrl_dt.algorithms.online_dt", "OnlineDTConfig"),
    "RADT": ("rayrl_dt.algorithms.radt", "RADT"),
    "RADTConfig": ("rayrl_dt.algorithms.radt", "RADTConfig"),
    "Reinformer": ("rayrl_dt.algorithms.reinformer", "Reinformer"),
    "ReinformerConfig": ("rayrl_dt.algorithms.reinformer", "ReinformerConfig"),
    "SequencePolicy": ("rayrl_dt.policy.sequence_policy", "SequencePolicy"),
    "UserError": ("rayrl_dt.errors", "UserError"),
    "load_dataset": ("rayrl_dt.data.sources", "load"),
}

__all__ = [
    "BC",
    "DT",
    "RADT",
    "ActionGradient",
    "BCConfig",
    "DTConfig",
    "OnlineDT",
    "OnlineDTConfig",
    "RADTConfig",
    "Reinformer",
    "ReinformerConfig",
    "SequencePolicy",
    "UserError",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
