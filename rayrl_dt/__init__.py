"""Ray-distributed offline-to-online RL for return-conditioned transformers.

Public names are imported on first use, so that `import rayrl_dt` does not import Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayrl_dt.algorithms.baselines.cql import CQL, CQLConfig
    from rayrl_dt.algorithms.baselines.iql import IQL, IQLConfig
    from rayrl_dt.algorithms.baselines.td3bc import TD3BC, TD3BCConfig
    from rayrl_dt.algorithms.bc import BC, BCConfig
    from rayrl_dt.algorithms.dt import DT, DTConfig
    from rayrl_dt.algorithms.online.algorithm import OnlineDT, OnlineDTConfig
    from rayrl_dt.algorithms.radt import RADT, RADTConfig
    from rayrl_dt.algorithms.reinformer import Reinformer, ReinformerConfig
    from rayrl_dt.data.sources import load as load_dataset
    from rayrl_dt.errors import UserError
    from rayrl_dt.policy.action_gradient import ActionGradient
    from rayrl_dt.serving.policy import SequencePolicy

_HOMES = {
    "ActionGradient": ("rayrl_dt.policy.action_gradient", "ActionGradient"),
    "BC": ("rayrl_dt.algorithms.bc", "BC"),
    "BCConfig": ("rayrl_dt.algorithms.bc", "BCConfig"),
    "CQL": ("rayrl_dt.algorithms.baselines.cql", "CQL"),
    "CQLConfig": ("rayrl_dt.algorithms.baselines.cql", "CQLConfig"),
    "DT": ("rayrl_dt.algorithms.dt", "DT"),
    "DTConfig": ("rayrl_dt.algorithms.dt", "DTConfig"),
    "IQL": ("rayrl_dt.algorithms.baselines.iql", "IQL"),
    "IQLConfig": ("rayrl_dt.algorithms.baselines.iql", "IQLConfig"),
    "OnlineDT": ("rayrl_dt.algorithms.online.algorithm", "OnlineDT"),
    "OnlineDTConfig": ("rayrl_dt.algorithms.online.algorithm", "OnlineDTConfig"),
    "RADT": ("rayrl_dt.algorithms.radt", "RADT"),
    "RADTConfig": ("rayrl_dt.algorithms.radt", "RADTConfig"),
    "Reinformer": ("rayrl_dt.algorithms.reinformer", "Reinformer"),
    "ReinformerConfig": ("rayrl_dt.algorithms.reinformer", "ReinformerConfig"),
    "SequencePolicy": ("rayrl_dt.serving.policy", "SequencePolicy"),
    "TD3BC": ("rayrl_dt.algorithms.baselines.td3bc", "TD3BC"),
    "TD3BCConfig": ("rayrl_dt.algorithms.baselines.td3bc", "TD3BCConfig"),
    "UserError": ("rayrl_dt.errors", "UserError"),
    "load_dataset": ("rayrl_dt.data.sources", "load"),
}

__all__ = [
    "BC",
    "CQL",
    "DT",
    "IQL",
    "RADT",
    "TD3BC",
    "ActionGradient",
    "BCConfig",
    "CQLConfig",
    "DTConfig",
    "IQLConfig",
    "OnlineDT",
    "OnlineDTConfig",
    "RADTConfig",
    "Reinformer",
    "ReinformerConfig",
    "SequencePolicy",
    "TD3BCConfig",
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
