"""What a policy sees at a step of some data, and the choices of its model that follow from it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.info import DatasetInfo
from rayrl_dt.errors import UserError
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.encoders import encoder_of, stacked
from rayrl_dt.models.model_config import ModelConfig

__all__ = ["seen_by"]

_FRAMES = 4
"""Images of a stack (Mnih et al. 2015), as both papers have it."""


def seen_by(model: ModelConfig, info: DatasetInfo) -> tuple[gym.Space[Any], dict[str, Any]]:
    """Return the space of what a policy sees at a step, and the choices of a model that hang on it.

    Raises:
        UserError: there are no single images to stack, or nothing can read them.
    """
    space = info.observation_space
    single = space.dtype == np.uint8 and len(space.shape or ()) == 2
    if model.frame_stack is not None and not single:
        raise UserError(
            f"model_config.frame_stack is {model.frame_stack}, and the observations of {info.source} are no single "
            f"images (H, W) of uint8 but {space.dtype} of shape {space.shape}; remove it"
        )
    frames = (model.frame_stack or _FRAMES) if single else None
    seen = stacked(space, frames)
    choices: dict[str, Any] = {"frame_stack": frames}
    if "embeddings" in BACKBONES[model.backbone].options:
        automatic = "atari" if encoder_of(seen, model.encoder).raw else "gym"
        choices["embeddings"] = automatic if model.embeddings == "auto" else model.embeddings
        if choices["embeddings"] == "atari" and model.activation == "auto":
            choices["activation"] = "gelu"
    return seen, choices
