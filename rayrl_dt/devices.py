"""Host and device, side by side: which reads wait, and how numbers travel while both go on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normal_like", "on_device", "reads_are_free"]


def reads_are_free(device: torch.device | str) -> bool:
    """Return whether the host reads a number of a device at once.

    So it is on a CPU, whose operations are over when they return. A GPU's are only asked for then, and who reads a
    number waits for all that was asked for before it.
    """
    return torch.device(device).type == "cpu"


def on_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Return values of the host on a device; a GPU copies page-locked memory without holding the host up."""
    if values.device.type == "cpu" and torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers from a CPU generator, so that they are the same on every device."""
    return on_device(torch.randn(like.shape, generator=generator), like.device)
