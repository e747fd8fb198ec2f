"""Acting on images: each is encoded once, when it is new, and all that follows is computed afresh.

The convolutions are most of a policy's work, and give the same for an image in every window. With the authors'
positions for Atari nothing behind them can be kept: they change for every step when the window slides.

Shape legend: N slots, n rows that are wanted, K steps, d width, O outputs.
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
from rayrl_dt.precision import autocast

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

    def outputs(self, rows: Array | None) -> Tensor:
        """Return the outputs; see `ActingPlan.outputs`."""
        with torch.inference_mode(), autocast("cpu", self._precision):
            (embedded,) = self._catch_up().window(rows)  # (n, K, d)
            window = replace(self._context.window(rows).to_torch(), observations=embedded)
            outputs: Tensor = self._model(window, last_only=True)[:, -1]  # (n, 1, O) -> (n, O)
        return outputs

    def _newest_values(self, steps: int) -> list[Tensor]:
        """Embed the images of the steps that came."""
        newest = torch.as_tensor(self._context.window().observations[:, -steps:])
        return [self._embedding(newest)]  # (N, steps, *obs) -> (N, steps, d)
