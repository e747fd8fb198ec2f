"""Acting on images: each is encoded once, when it is new, and all that follows is computed afresh.

The convolutions are most of a policy's work, and give the same for an image in every window. With the authors'
positions for Atari nothing behind them can be kept: they change for every step when the window slides.

Shape legend: N slots, n rows that are wanted, K steps, d width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayrl_dt.models.encoders import ObservationEmbedding
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.plan import StepwisePlan
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.types import Window

__all__ = ["KeptImagesPlan", "image_embedding"]

Array = np.ndarray[Any, Any]


def image_embedding(trunk: nn.Module) -> ObservationEmbedding | None:
    """Return the one embedding through which a trunk sees images; None if it sees none, or in another way."""
    found = [each for each in trunk.modules() if isinstance(each, ObservationEmbedding)]
    return found[0] if len(found) == 1 and found[0].encoder.raw else None


class KeptImagesPlan(StepwisePlan):
    """Keeps the embedded images of the windows; the model computes the rest.

    Args:
        model: the policy network, in float32 on a CPU. A change of it ends the plan.
        context: the windows.
        precision: "fp32" or "bf16" (autocast).
    """

    def __init__(self, model: SequenceModel, context: ContextBuffer, precision: str) -> None:
        super().__init__(model, context, precision)
        embedding = image_embedding(model.trunk)
        assert embedding is not None
        self._embedding = embedding

    def _window(self, rows: Array | None) -> Window[Tensor]:
        """Return the windows with what is kept of their images, `(n, K, d)`."""
        (embedded,) = self._catch_up().window(rows)
        return replace(super()._window(rows), observations=embedded)

    def _newest_values(self, steps: int) -> list[Tensor]:
        """Embed the images of the steps that came; of none where an actor asks once more."""
        begin = self._context.context_length - steps
        newest = torch.as_tensor(self._context.window().observations[:, begin:])
        return [self._embedding(newest)]  # (N, steps, *obs) -> (N, steps, d)
