"""Encoders: from normalized observations to features, by the kind of the observation space.

An encoder is one class here and one row of `ENCODERS`; everyone else asks for the one of a space. Backbones map its
features linearly to tokens (`ObservationEmbedding`), and critics take them beside an action.

Shape legend: B batch, K steps, S observation dimensions, F features, d width of a token; `*obs` observation shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError
from rayrl_dt.models.images import SMALLEST_SIDE, ImageNetwork
from rayrl_dt.models.impala import ImpalaNetwork
from rayrl_dt.types import Normalizer

__all__ = [
    "ENCODERS",
    "Encoder",
    "ImageEncoder",
    "ImpalaEncoder",
    "ObservationEmbedding",
    "PackedEncoder",
    "VectorEncoder",
    "encoder_of",
    "stacked",
]


class Encoder(nn.Module, ABC):
    """Turns normalized observations into features.

    Args:
        space: of one observation.

    Attributes:
        features: F.
        raw: whether it takes observations as they came, in their own type, instead of normalized.
    """

    features: int
    raw: ClassVar[bool] = False

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()

    @classmethod
    @abstractmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether observations of a space can be read."""

    @classmethod
    def normalizer(cls, store: TrajectoryStore) -> Normalizer:
        """Return what the observations of a data set are normalized with before they are encoded."""
        return store.normalizer

    @classmethod
    def dtype(cls, space: gym.Space[Any]) -> type[np.generic]:
        """Return how raw observations are kept while acting."""
        return np.uint8 if space.dtype == np.uint8 else np.float32

    def normalize_with(self, normalizer: Normalizer) -> None:
        """Take over the policy's normalizer, where what it normalizes is inside of raw observations."""

    @abstractmethod
    def forward(self, observations: Tensor) -> Tensor:
        """Map `(..., *obs)` to `(..., F)`."""


class VectorEncoder(Encoder):
    """Vectors are their own features."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        (self.features,) = space.shape or ()

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether observations are vectors."""
        return len(space.shape or ()) == 1 and not isinstance(space, Packed)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the observations `(..., S)`."""
        return observations


class ImageEncoder(Encoder):
    """Images of bytes, `(C, H, W)` or `(H, W, C)`, through convolutions (`rayrl_dt.models.images`).

    The axis of channels is the shorter one of the first and the last.

    Raises:
        UserError: the image is too small.
    """

    raw = True
    _network: ClassVar[type[ImageNetwork] | type[ImpalaNetwork]] = ImageNetwork

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        shape = space.shape or ()
        self._channels_last = shape[-1] < shape[0]
        self.network = self._network(*(shape[-1:] + shape[:-1] if self._channels_last else shape))
        self.features = self.network.features

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether observations are bytes with an axis of channels."""
        return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3

    @classmethod
    def normalizer(cls, store: TrajectoryStore) -> Normalizer:
        """Return the normalizer that changes nothing: bytes are divided by 255 in the first layer."""
        return Normalizer.identity(())

    def forward(self, observations: Tensor) -> Tensor:
        """Map bytes `(..., C, H, W)` or `(..., H, W, C)` to `(..., F)`."""
        images = observations.movedim(-1, -3) if self._channels_last else observations
        features: Tensor = self.network(images)
        return features


class ImpalaEncoder(ImageEncoder):
    """Images as `ImageEncoder` takes them, through the deeper network of IMPALA (`rayrl_dt.models.impala`)."""

    _network = ImpalaNetwork


class PackedEncoder(Encoder):
    """A picture and numbers beside it: the features of `ImageEncoder`, and the normalized numbers.

    A picture `(H, W)` has one channel. Pictures in a Dict are not stacked.

    Raises:
        UserError: the picture is too small.
    """

    mean: Tensor
    std: Tensor
    raw = True

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        assert isinstance(space, Packed)
        self._split, shape = space.split, space.picture
        self._picture = (1, *shape) if len(shape) == 2 else shape
        self.image = ImageEncoder(gym.spaces.Box(0, 255, self._picture, np.uint8))
        self.features = space.numbers + self.image.features
        self.register_buffer("mean", torch.zeros(space.numbers))
        self.register_buffer("std", torch.ones(space.numbers))

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        """Return whether observations are a picture and numbers."""
        return isinstance(space, Packed)

    @classmethod
    def normalizer(cls, store: TrajectoryStore) -> Normalizer:
        """Return that of the numbers in the store's own episodes; the first layer divides bytes of pictures by 255."""
        space = store.info.observation_space
        assert isinstance(space, Packed)
        # The numbers come first, so that pictures are not read.
        words = store.observations[:, : space.split][store.rows(np.arange(store.num_steps))]
        return Normalizer.fit(space.numbers_of(words))

    def normalize_with(self, normalizer: Normalizer) -> None:
        """Take over the normalizer of the numbers."""
        self.mean.copy_(torch.as_tensor(normalizer.mean))
        self.std.copy_(torch.as_tensor(normalizer.std))

    def forward(self, observations: Tensor) -> Tensor:
        """Map bytes `(..., n)` to `(..., D + F of the picture)`."""
        # A copy, since bytes that are read as numbers have to begin at one.
        words = observations[..., : self._split].clone(memory_format=torch.contiguous_format)
        numbers = (words.view(torch.float32) - self.mean) / self.std  # (..., D)
        picture = self.image(torch.unflatten(observations[..., self._split :], -1, self._picture))
        return torch.cat([numbers, picture], dim=-1)


ENCODERS: dict[str, type[Encoder]] = {
    "vector": VectorEncoder,
    "image": ImageEncoder,
    "impala": ImpalaEncoder,
    "packed": PackedEncoder,
}
"""By name; where none is named, the first that fits a space reads its observations."""


def encoder_of(space: gym.Space[Any], name: str = "auto") -> type[Encoder]:
    """Return the encoder that reads observations of a space.

    Args:
        space: of what is seen at a step.
        name: of `ENCODERS`; "auto" for the first that fits.

    Raises:
        UserError: there is none, or the named one does not fit.
    """
    if name != "auto":
        if ENCODERS[name].fits(space):
            return ENCODERS[name]
        fitting = [repr(other) for other, encoder in ENCODERS.items() if encoder.fits(space)]
        raise UserError(
            f"model_config.encoder is {name!r}, and observations are {space.dtype} of shape {space.shape or ()}; use "
            f"{', '.join([*fitting, repr('auto')])}"
        )
    for encoder in ENCODERS.values():
        if encoder.fits(space):
            return encoder
    raise UserError(
        f"observations {space.dtype} of shape {space.shape or ()} cannot be read; allowed are vectors, and images "
        f"uint8 of {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels or more: wrap the environment with "
        "gymnasium.wrappers.FlattenObservation"
    )


def stacked(space: gym.Space[Any], frames: int | None) -> gym.Space[Any]:
    """Return the space of what a policy sees at a step: of single images `(H, W)` the newest `frames`, as channels.

    Args:
        space: of one observation.
        frames: None where observations are seen as they are.
    """
    if frames is None:
        return space
    assert isinstance(space, gym.spaces.Box)
    low, high = (np.stack([bound] * frames) for bound in (space.low, space.high))
    return gym.spaces.Box(low, high, dtype=np.uint8)


class ObservationEmbedding(nn.Linear):
    """An encoder, and a linear map from its features to tokens.

    Args:
        space: of one observation.
        width: d.
        name: of the encoder; see `encoder_of`.

    Raises:
        UserError: there is no encoder for the space.
    """

    def __init__(self, space: gym.Space[Any], width: int, name: str = "auto") -> None:
        encoder = encoder_of(space, name)(space)
        super().__init__(encoder.features, width)
        self.encoder = encoder

    def forward(self, observations: Tensor) -> Tensor:
        """Map `(B, K, *obs)` to `(B, K, d)`; images that were mapped already, `(B, K, d)`, stay as they are."""
        if self.encoder.raw and observations.dtype != torch.uint8:
            return observations
        return super().forward(self.encoder(observations))  # (B, K, *obs) -> (B, K, F) -> (B, K, d)
