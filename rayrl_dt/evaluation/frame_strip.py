"""What a policy sees on its way to a low, a middle and a high return: a few frames of one episode each.

Shape legend: R episodes, F frames of each, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.array_files import BROKEN
from rayrl_dt.envs.observations import are_pixels
from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_model
from rayrl_dt.evaluation.targets import TargetReturns, policy_targets
from rayrl_dt.interop.bundle import Bundle

__all__ = ["FrameStrip", "low_middle_high", "pictures_of", "record_strip", "sees_pictures"]

Array = np.ndarray[Any, Any]
_FRAMES = 8
_COLORS = (1, 3)


@dataclass(frozen=True)
class FrameStrip:
    """Frames of an episode for each of some targets.

    Attributes:
        targets: `(R,)` raw returns that were asked for, in rising order.
        returns: `(R,)` raw returns that were achieved.
        steps: `(R, F)` the step of each frame.
        frames: `(R, F, H, W)` in gray, or `(R, F, H, W, 3)`, uint8.
    """

    targets: Array
    returns: Array
    steps: Array
    frames: Array

    def save(self, path: Path) -> None:
        """Write it as one file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **vars(self))

    @classmethod
    def open(cls, path: Path) -> FrameStrip:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as values:
                strip = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        except BROKEN as error:
            raise UserError(
                f" cannot be read ({type(error).__name__}); make it again: eval --frames"
            ) from error
        rows, count = strip.steps.shape if strip.steps.ndim == 2 else (0, 0)
        fits = strip.frames.shape[:2] == (rows, count) and strip.frames.dtype == np.uint8
        if not fits or strip.targets.shape != (rows,) or strip.returns.shape != (rows,):
            raise UserError(" is no strip of frames; make it again: eval --frames")
        return strip


def record_strip(bundle: Bundle, targets: str, **options: Any) -> FrameStrip:
    """Play an episode at the lowest, the middle and the highest of some targets.

    Args:
        bundle: of the policy.
        targets: as for `parse_targets`.
        options: of `evaluate_model`.

    Raises:
        UserError: the policy sees no images, or cannot be evaluated.
    """
    spec = bundle.spec
    _picture_shape(spec.observation_space)
    asked = low_middle_high(bundle, targets)
    rollouts = evaluate_model(bundle.model, asked, episodes_per_target=1, record=True, **options)
    steps, frames = [], []
    for episode in rollouts.episodes:
        assert episode.trajectory is not None
        steps.append(np.linspace(0, episode.length, _FRAMES).astype(np.int64))
        frames.append(pictures_of(spec.observation_space, episode.trajectory.observations[steps[-1]]))
    return FrameStrip(
        targets=np.array([episode.target for episode in rollouts.episodes]),
        returns=np.array([episode.episode_return for episode in rollouts.episodes]),
        steps=np.stack(steps),
        frames=np.stack(frames),
    )


def low_middle_high(bundle: Bundle, targets: str) -> TargetReturns:
    """Return the lowest, the middle and the highest of some targets, as `parse_targets` reads them."""
    every = sorted(policy_targets(bundle.spec, targets).targets)
    chosen = dict.fromkeys((every[0], every[len(every) // 2], every[-1]))
    return TargetReturns(tuple(chosen))


def sees_pictures(space: gym.Space[Any]) -> bool:
    """Return whether there is a picture in an observation."""
    return isinstance(space, Packed) or are_pixels(space.shape or (), space.dtype)


def _picture_shape(space: gym.Space[Any]) -> tuple[int, ...]:
    """Return the shape of the picture in an observation.

    Raises:
        UserError: there is none.
    """
    shape = space.picture if isinstance(space, Packed) else space.shape or ()
    if not sees_pictures(space):
        raise UserError(
            f"--frames shows what a policy sees, and its observations are no images but {space.dtype} of shape "
            f"{shape}; leave it out"
        )
    return shape


def pictures_of(space: gym.Space[Any], observations: Array) -> Array:
    """Return observations `(F, *obs)` as `(F, H, W)` or `(F, H, W, 3)`; of a stack the newest frame."""
    shape = _picture_shape(space)
    values = observations[:, space.split :].reshape(-1, *shape) if isinstance(space, Packed) else observations
    if len(shape) == 2:
        return values
    if shape[0] < shape[-1]:
        values = np.moveaxis(values, 1, -1)  # (F, C, H, W) -> (F, H, W, C)
    return values if values.shape[-1] == max(_COLORS) else values[..., -1]
