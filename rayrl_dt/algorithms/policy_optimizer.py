"""What every optimizer of a policy's weights is told, whichever learner builds it; and AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rayrl_dt import devices

__all__ = ["adamw", "optimizer_arguments", "parameters_of"]


def adamw(device: torch.device, *, fused_on_cpu: bool = True, **arguments: Any) -> torch.optim.AdamW:
    """Return AdamW, fused: in one pass over memory, and such that `DivergenceGuard` can hold it.

    Args:
        device: of the weights.
        fused_on_cpu: False for what has always been computed in several passes there: that rounds otherwise, and runs
            would not go on as they began.
        arguments: of `torch.optim.AdamW`.
    """
    return torch.optim.AdamW(**arguments, fused=fused_on_cpu or not devices.reads_are_free(device))


def optimizer_arguments(model: nn.Module, config: Any) -> dict[str, Any]:
    """Return the arguments of AdamW, and of its like, for the trained weights of a policy.

    Args:
        model: the policy.
        config: with `lr`, `weight_decay`, `decayed` and `adam_beta2`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if config.decayed == "weights":
        layers = (module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
        weights = {id(layer.weight) for layer in layers}
        groups = [
            {"params": [parameter for parameter in trained if id(parameter) in weights]},
            {
                "params": [parameter for parameter in trained if id(parameter) not in weights],
                "weight_decay": 0.0,
            },
        ]
    return {
        "params": groups,
        "lr": config.lr,
        "betas": (0.9, config.adam_beta2),
        "weight_decay": config.weight_decay,
    }


def parameters_of(optimizer: Any) -> list[nn.Parameter]:
    """Return all weights that an optimizer moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
