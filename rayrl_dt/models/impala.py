"""The deeper network for images, of IMPALA (Espeholt et al. 2018, figure 3, on the right), up to its linear layer.

Three sections of 16, 32 and 32 filters: a convolution, a maximum over 3 x 3 pixels at every second one, two residual
blocks. Some eight times the work of `rayrl_dt.models.images.ImageNetwork` on Atari's frames.

Shape legend: N images, C channels, H x W pixels, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.models.images import pixels_of

__all__ = ["ImpalaNetwork"]

_SECTIONS = (16, 32, 32)


class _Residual(nn.Module):
    """x + two convolutions of its positive part."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(filters, filters, 3, padding=1)
        self.second = nn.Conv2d(filters, filters, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to the same shape."""
        inner = self.first(functional.relu(x))
        output: Tensor = x + self.second(functional.relu(inner))
        return output


class ImpalaNetwork(nn.Module):
    """Sections of a convolution, a pooling and two residual blocks, flattened behind a ReLU.

    Args:
        channels: C.
        height: H.
        width: W.

    Attributes:
        features: F.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        inputs = (channels, *_SECTIONS)
        pairs = list(zip(inputs, _SECTIONS, strict=False))
        self.layers = nn.ModuleList(nn.Conv2d(given, filters, 3, padding=1) for given, filters in pairs)
        self.blocks = nn.ModuleList(
            nn.Sequential(_Residual(filters), _Residual(filters)) for filters in _SECTIONS
        )
        for _ in _SECTIONS:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.features = _SECTIONS[-1] * height * width

    def forward(self, images: Tensor) -> Tensor:
        """Map bytes `(..., C, H, W)` to `(..., F)`."""
        first = self.layers[0]
        assert isinstance(first, nn.Conv2d)
        x = pixels_of(images, first)  # (N, C, H, W)
        x = functional.conv2d(x, first.weight / 255, first.bias, padding=1)
        for number, blocks in enumerate(self.blocks):
            x = x if number == 0 else self.layers[number](x)
            x = blocks(functional.max_pool2d(x, 3, stride=2, padding=1))
        flat = torch.flatten(functional.relu(x), 1)  # (N, F)
        features: Tensor = flat.reshape(*images.shape[:-3], self.features)
        return features
