"""The names and shapes of a policy's weights, before any memory is taken for them.

What a file says of a policy can ask for any amount of memory; it is compared with the weights beside it first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec

__all__ = ["shapes_of"]

_MOST_BESIDE = 2**30
"""Bytes of tables that a model computes and no file holds: RADT's positions of a million steps of width 256."""


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they are where normal numbers are to be drawn.

    On the device "meta" nothing is drawn, but torch loads its compiler to find that out, which takes a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, torch.Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def shapes_of(spec: PolicySpec, *, tensors: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in the state dict of a policy's model.

    Args:
        spec: of the policy.
        tensors: how many its file holds, which bounds the layers that are built here.

    Raises:
        UserError: the specification asks for more layers than tensors, for a table that takes too much memory, or for
            what cannot be built.
    """
    layers = spec.model.num_layers
    if layers > tensors:
        raise UserError(
            f"there are {layers} layers (num_layers) and {tensors} tensors of weights; use the model_config that it "
            "was trained with"
        )
    # A copy, since what a specification remembers is not to lie on this device.
    with torch.device("meta"), _Undrawn():
        model = SequenceModel(replace(spec))
    state = model.state_dict()
    beside = sum(
        table.numel() * table.element_size() for name, table in model.named_buffers() if name not in state
    )
    if beside > _MOST_BESIDE:
        raise UserError(
            f"its tables of positions take {beside / 2**30:,.0f} GiB for max_episode_steps "
            f"{spec.model.max_episode_steps} and context_length {spec.model.context_length}; use the model_config "
            "that it was trained with"
        )
    return {name: tuple(value.shape) for name, value in state.items()}
