"""Atari data in color, as Minari publishes it: its screens become the gray frames that the papers' networks see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.atari import to_frames
from rayrl_dt.types import Trajectory

__all__ = ["FRAME_SPACE", "SCREENS_NOTE", "are_screens", "in_frames", "preprocessed"]

FRAME_SPACE = gym.spaces.Box(0, 255, (84, 84), np.uint8)
_SCREEN = (210, 160, 3)
# Arguments of a game that its id and the preprocessing choose.
_OF_SCREENS = ("game", "frameskip", "obs_type", "render_mode")
SCREENS_NOTE = (
    "its screens in color are brought to gray frames of 84 x 84, as the papers' networks see them; they were recorded "
    "without the maximum of two screens, so what flickers is missing in some frames, and where they were kept as JPEG "
    "pixels are slightly off; policies are evaluated in the papers' preprocessing"
)


def are_screens(spec: EnvSpec, space: gym.Space[Any]) -> bool:
    """Return whether observations are a game's screens in color; a game of any other package is none of Atari's."""
    return spec.id.startswith("ALE/") and space.dtype == np.uint8 and space.shape == _SCREEN


def in_frames(attempt: Callable[[], Trajectory]) -> Callable[[], Trajectory]:
    """Return the same attempt to read an episode, with frames for screens."""

    def read() -> Trajectory:
        episode = attempt()
        return replace(episode, observations=to_frames(episode.observations))

    return read


def preprocessed(spec: EnvSpec) -> EnvSpec:
    """Return the game that screens were recorded in as it was, but for the papers' preprocessing of its screens."""
    own = {"repeat_action_probability": 0.25, **spec.kwargs, "frame_skip": spec.kwargs.get("frameskip", 4)}
    if spec.max_episode_steps is not None:
        own["max_episode_steps"] = spec.max_episode_steps
    return RecordedEnv.named(spec.id, **{key: own[key] for key in own if key not in _OF_SCREENS}).spec()
