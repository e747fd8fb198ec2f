"""Which networks a learner keeps beside a policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn

from rayrl_dt.critics.networks import DiscreteCritic, IQLCritic, TwinCritic

__all__ = ["CRITICS", "Companions", "still_copy"]

CRITICS: Mapping[str, type[TwinCritic] | type[IQLCritic]] = MappingProxyType(
    {"twin": TwinCritic, "discrete": DiscreteCritic, "iql": IQLCritic}
)
# Where each of them stands in an `IQLCritic`.
_PLACES = {"twin": "q.", "iql": ""}
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Companions:
    """The networks beside a policy.

    Attributes:
        critic: which of `CRITICS`; None for none.
        shape: keyword arguments of the critic, such as `hidden`.
        critic_trains: False for a critic that stays as it came.
        slow: the networks with a slow copy, of "model" (the policy) and "critic".
        frozen_model: whether to keep the policy that finetuning began with.
        initial_temperature: of the entropy; None without one.
        averaged: whether to keep an average of the policy's weights, which is what is then evaluated and kept in
            bundles.
    """

    critic: str | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    critic_trains: bool = True
    slow: tuple[str, ...] = ()
    frozen_model: bool = False
    initial_temperature: float | None = None
    averaged: bool = False

    @property
    def evaluated(self) -> str:
        """The name of the network that is evaluated and kept."""
        return "averaged_model" if self.averaged else "model"

    @property
    def kept_under(self) -> str | None:
        """Where the critic stands in an `IQLCritic`, as bundles keep critics; None for one that they do not keep.

        One that does not train is another bundle's. One with layer norm, with more than two members or of discrete
        actions serves training alone: acting has fast passes of two plain networks.
        """
        shape = self.shape
        kept = self.critic_trains and not shape.get("layer_norm") and shape.get("ensemble", 2) == 2
        return _PLACES.get(self.critic) if kept and self.critic is not None else None


def still_copy(network: Network) -> Network:
    """Return a copy that never trains."""
    return copy.deepcopy(network).requires_grad_(False).eval()
