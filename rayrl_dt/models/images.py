"""The convolutions that read images: Decision Transformer's on Atari, and fewer for images too small for those.

The first layer takes bytes as they are: its weights are divided by 255 instead. Where its stride divides the kernel and
the image, it runs as a convolution of stride 1 over blocks of stride x stride pixels (space to depth), with the same
weights in another order: on a CPU several times as fast as the plain form, which `tests/models/test_images.py` holds it
to. Weights keep the paper's shape.

Shape legend: N images, C channels, H x W pixels, s stride, k kernel, O filters, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.errors import UserError

__all__ = ["SMALLEST_SIDE", "ImageNetwork", "pixels_of"]

_NETWORKS = (
    ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    ((16, 3, 2), (32, 3, 2)),
)
"""Filters, kernel and stride of each layer; the first network whose layers all fit the image is taken."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The type that is as long as a row of a block."""

SMALLEST_SIDE = 7
"""Pixels that the smallest network needs in each direction."""


class ImageNetwork(nn.Module):
    """Convolutions with a ReLU after each, flattened.

    Args:
        channels: C.
        height: H.
        width: W.

    Attributes:
        features: F.

    Raises:
        UserError: the image is too small for any network.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        layers = next((each for each in _NETWORKS if min(_sides(each, height, width)) > 0), None)
        if layers is None:
            raise UserError(
                f"images of {height} x {width} pixels are too small for convolutions, which need {SMALLEST_SIDE} x "
                f"{SMALLEST_SIDE}; flatten them with gymnasium.wrappers.FlattenObservation"
            )
        inputs = (channels, *(filters for filters, _, _ in layers))
        self.layers = nn.ModuleList(
            nn.Conv2d(given, filters, kernel, stride)
            for given, (filters, kernel, stride) in zip(inputs, layers, strict=False)
        )
        rows, columns = _sides(layers, height, width)
        self.features = inputs[-1] * rows * columns
        _, kernel, stride = layers[0]
        fits = stride in _WORDS and not (kernel % stride or height % stride or width % stride)
        self._block = stride if fits else 1

    def forward(self, images: Tensor) -> Tensor:
        """Map bytes `(..., C, H, W)`, perhaps a view whose images overlap, to `(..., F)`."""
        first, *rest = self.layers
        assert isinstance(first, nn.Conv2d)
        x = pixels_of(self._blocks(images), first)  # (N, H/s, W/s, C s s)
        x = x.permute(0, 3, 1, 2)  # channels come last in memory alone
        stride = first.stride[0] // self._block
        x = functional.conv2d(x, self._weight(first), first.bias, stride)
        for layer in rest:
            x = layer(functional.relu(x))
        # Flattened before the last ReLU: a ReLU is slow where its gradient lies in another order than its input.
        features = functional.relu(x.flatten(1))
        return features.reshape(*images.shape[:-3], self.features)  # (N, F) -> (..., F)

    def _blocks(self, images: Tensor) -> Tensor:
        """Return bytes `(..., C, H, W)` as blocks of s x s pixels, `(N, H/s, W/s, C s s)`, in one copy."""
        block = self._block
        if torch.compiler.is_compiling():  # an exported graph cannot read bytes as longer words
            x = torch.unflatten(torch.unflatten(images, -1, (-1, block)), -3, (-1, block))
            x = x.movedim((-4, -2), (-5, -4)).flatten(
                -3
            )  # (..., C, H/s, s, W/s, s) -> (..., H/s, W/s, C s s)
            return x.reshape(-1, *x.shape[-3:])
        whole = all(stride % block == 0 for stride in (*images.stride()[:-1], images.storage_offset()))
        if images.stride(-1) != 1 or not whole:
            images = images.clone(memory_format=torch.contiguous_format)
        # A row of a block is copied as one number, which is four times as fast as four bytes, and a channel at a time,
        # which takes half as long as all at once.
        rows = torch.unflatten(images.view(_WORDS[block]), -2, (-1, block))  # (..., C, H/s, s, W/s)
        *batch, channels, height, _, width = rows.shape
        blocks = rows.new_empty(*batch, height, width, channels, block)  # (..., H/s, W/s, C, s)
        for channel in range(channels):
            blocks[..., channel, :] = rows[..., channel, :, :, :].movedim(-1, -2)  # (..., H/s, W/s, s)
        x = blocks.view(torch.uint8).flatten(-2)  # (..., H/s, W/s, C s s)
        return x.reshape(-1, *x.shape[-3:])

    def _weight(self, layer: nn.Conv2d) -> Tensor:
        """Return the weights for pixels of 0 to 255 in blocks: `(O, C, k, k) -> (O, C s s, k/s, k/s)`."""
        block = self._block
        weight = torch.unflatten(torch.unflatten(layer.weight / 255, -1, (-1, block)), -3, (-1, block))
        # (O, C, k/s, s, k/s, s) -> (O, C, s, s, k/s, k/s)
        return weight.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def pixels_of(images: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return bytes `(..., C, H, W)` as one batch of numbers that a layer multiplies, `(N, C, H, W)`, from 0 to 255."""
    device = images.device.type
    # Every byte is exact in bfloat16.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
    return images.reshape(-1, *images.shape[-3:]).to(dtype)


def _sides(layers: tuple[tuple[int, int, int], ...], *sides: int) -> tuple[int, ...]:
    """Return the sides of the last layer's output; 0 or less where the image is too small."""
    for _, kernel, stride in layers:
        sides = tuple((side - kernel) // stride + 1 for side in sides)
    return sides
