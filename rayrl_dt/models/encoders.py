"""Encoders: from normalized observations to features, by the kind of the observation space.

An encoder is one class here and one row of `ENCODERS`; everyone else asks for the one of a space. Backbones map its
features linearly to tokens (`ObservationEmbedding`), and critics take them beside an action.

Shape legend: B batch, K steps, S observation dimensions, F features, d width of a token; `*obs` observation shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.types import Normalizer

__all__ = ["ENCODERS", "Encoder", "ObservationEmbedding", "VectorEncoder", "encoder_of"]


class Encoder(nn.Module, ABC):
    """Turns normalized observations into features.

    Args:
        space: of one observation.

    Attributes:
        features: F.
    """

    features: int

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
        return len(space.shape or ()) == 1

    def forward(self, observations: Tensor) -> Tensor:
        """Return the observations `(..., S)`."""
        return observations


ENCODERS: dict[str, type[Encoder]] = {
    "vector": VectorEncoder,
}
"""By name; the first that fits a space reads its observations."""


def encoder_of(space: gym.Space[Any]) -> type[Encoder]:
    """Return the encoder that reads observations of a space.

    Raises:
        UserError: there is none.
    """
    for encoder in ENCODERS.values():
        if encoder.fits(space):
            return encoder
    raise UserError(
        f"observations of shape {space.shape or ()} are not supported yet; allowed are vectors: wrap the environment "
        "with gymnasium.wrappers.FlattenObservation"
    )


class ObservationEmbedding(nn.Linear):
    """An encoder, and a linear map from its features to tokens.

    Args:
        space: of one observation.
        width: d.

    Raises:
        UserError: there is no encoder for the space.
    """

    def __init__(self, space: gym.Space[Any], width: int) -> None:
        encoder = encoder_of(space)(space)
        super().__init__(encoder.features, width)
        self.encoder = encoder

    def forward(self, observations: Tensor) -> Tensor:
        """Map `(B, K, *obs)` to `(B, K, d)`."""
        return super().forward(self.encoder(observations))  # (B, K, *obs) -> (B, K, F) -> (B, K, d)
