"""Atari games as the papers play them, and the same form for frames that were recorded otherwise.

A game that the user names, `ALE/Breakout-v5`, gets Gymnasium's `AtariPreprocessing` with the choices of Decision
Transformer's and RADT's evaluations; what the data were recorded in stays as it is. Frames come one at a time: stacking
them is the model's business (`model_config.frame_stack`).
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from rayrl_dt.errors import UserError, one_of

if TYPE_CHECKING:
    from rayrl_dt.envs.recorded import RecordedEnv

__all__ = [
    "PREPROCESSING",
    "PRESETS",
    "TIME_LIMIT",
    "frames_per_step",
    "is_game",
    "preprocessed",
    "to_frames",
]

Array = np.ndarray[Any, Any]

PREPROCESSING = "gymnasium.wrappers.atari_preprocessing:AtariPreprocessing"
TIME_LIMIT = "gymnasium.wrappers.common:TimeLimit"
_STACKING = "gymnasium.wrappers.stateful_observation:FrameStackObservation"

_PAPERS = {
    "repeat_action_probability": 0.0,
    "full_action_space": False,
    "max_num_frames_per_episode": 108_000,
    "noop_max": 30,
    "frame_skip": 4,
    "screen_size": 84,
    "terminal_on_life_loss": False,
    "grayscale_obs": True,
    "frame_stack": 1,
}
PRESETS: dict[str, dict[str, Any] | None] = {
    "papers": _PAPERS,
    "dopamine": {**_PAPERS, "repeat_action_probability": 0.25, "noop_max": 0},
    "raw": None,
}
"""What a named game is played with: that of Decision Transformer's and RADT's evaluations, that of the agents whose
replay the papers learn from (Castro et al. 2018: sticky actions, no no-ops), or the game as it is registered."""

_WRAPPER = ("noop_max", "frame_skip", "screen_size", "terminal_on_life_loss", "grayscale_obs")


def is_game(name: str) -> bool:
    """Return whether an environment's id is that of a game."""
    return name.rpartition(":")[2].startswith("ALE/")


def preprocessed(spec: EnvSpec, options: Mapping[str, Any]) -> tuple[EnvSpec, dict[str, Any]]:
    """Return the specification of a registered game with the preprocessing that options choose, and the other options.

    Args:
        spec: as it is registered.
        options: `preset` (of `PRESETS`), whatever it chooses, `mode` and `difficulty`, and other arguments of the game.

    Raises:
        UserError: the preset is unknown, an option goes against it, or OpenCV is missing.
    """
    chosen = dict(options)
    preset = PRESETS[one_of("environment.env_config.preset", chosen.pop("preset", "papers"), PRESETS)]
    if preset is None:
        return spec, chosen
    if "frameskip" in chosen:
        raise UserError(
            f"environment.env_config.frameskip is {chosen['frameskip']!r}, and {spec.id} is preprocessed: give "
            "frame_skip (an action's frames, of which the last two count), or preset: raw"
        )
    if importlib.util.find_spec("cv2") is None:
        raise UserError(
            f"environment {spec.id!r} needs OpenCV to scale its frames, which is missing: pip install 'rayrl_dt[atari]'"
        )
    values = {**preset, **chosen}
    stack = values.pop("frame_stack")
    arguments = {key: values.pop(key) for key in _WRAPPER}
    wrappers = [WrapperSpec("AtariPreprocessing", PREPROCESSING, arguments)]
    if stack != 1:
        stacking = {"stack_size": stack, "padding_type": "zero"}
        wrappers.append(WrapperSpec("FrameStackObservation", _STACKING, stacking))
    made = copy.deepcopy(spec)
    made.kwargs |= {"frameskip": 1}
    made.additional_wrappers = tuple(wrappers)
    return made, values


def frames_per_step(env: RecordedEnv) -> int | None:
    """Return how many emulated frames a step of a game lasts; None for other environments, and where it varies."""
    own = env.kwargs.get("frameskip", 4)
    if not is_game(env.id) or not isinstance(own, int):
        return None
    skips = (
        each.kwargs["frame_skip"]
        for each in env.wrappers
        if each.entry_point == PREPROCESSING and each.kwargs
    )
    return own * next(skips, 1)


def outer_limit(env: RecordedEnv) -> int:
    """Return the most steps that a limit around a game's other wrappers allows; 0 if there is none."""
    limits = (each.kwargs for each in env.wrappers if each.entry_point == TIME_LIMIT and each.kwargs)
    return int(next(limits, {}).get("max_episode_steps", 0))


def to_frames(screens: Array, size: int = 84) -> Array:
    """Return screens `(T, 210, 160, 3)` in gray and scaled, `(T, size, size)`, as `AtariPreprocessing` scales them.

    Raises:
        UserError: OpenCV is missing.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "screens in color need OpenCV to be scaled, which is missing: pip install 'rayrl_dt[atari]'"
        ) from error
    gray = (cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY) for screen in screens)
    frames = [cv2.resize(each, (size, size), interpolation=cv2.INTER_AREA) for each in gray]
    return np.asarray(frames, np.uint8)
