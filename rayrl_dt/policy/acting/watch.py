"""Whether a model is still the one that something was derived from."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ModelWatch", "can_be_watched", "has_hooks"]

_PROBES = 16  # elements of each tensor


def can_be_watched(model: nn.Module) -> bool:
    """Return whether all tensors are arrays, in float32 or whole, that count their changes, and no hook watches."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return all(map(_is_plain, tensors)) and not has_hooks(model)


def has_hooks(model: nn.Module) -> bool:
    """Return whether a hook wants to see a forward pass of the model or of a part of it."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and (tensor.dtype == torch.float32 or not tensor.is_floating_point())
        and tensor.is_contiguous()
        and not tensor.is_inference()
    )


class ModelWatch:
    """Notices changed weights, replaced weights or modules, and new hooks.

    New storage shows in a tensor's address (the old one is kept alive here, so that its address cannot be taken anew).
    Most changes in place show in its version, but not those of fused optimizers and those through `.data`. They show in
    some elements of every tensor, which are compared too. What stays unseen is a change through `.data`, NumPy or a
    fused kernel that spares all of these elements in all tensors.

    Args:
        model: one that `can_be_watched`.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._tables: list[dict[str, Any]] = [
            table
            for module in modules
            for table in (module._parameters, module._buffers, module._modules)
            if table
        ]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._members = self._current_members()
        self._tensors = [member for member in self._members if isinstance(member, Tensor)]
        flat = (tensor.detach().view(-1).numpy() for tensor in self._tensors)
        self._probes = [values[:: len(values) // _PROBES + 1] for values in flat]
        self._marks = self._current_marks()
        self._probed = self._current_probes()

    def unchanged(self) -> bool:
        """Return whether the model computes what it did when the watch began, and is not listened to."""
        members = self._current_members()
        return (
            len(members) == len(self._members)
            and all(now is then for now, then in zip(members, self._members, strict=True))
            and self._current_marks() == self._marks
            and self._current_probes() == self._probed
            and not any(self._hooks)
        )

    def _current_members(self) -> list[Any]:
        """Every tensor and submodule, by its place in the model."""
        return [member for table in self._tables for member in table.values()]

    def _current_marks(self) -> list[tuple[int, int]]:
        return [(tensor._version, tensor.data_ptr()) for tensor in self._tensors]

    def _current_probes(self) -> bytes:
        return np.concatenate(self._probes).tobytes()
