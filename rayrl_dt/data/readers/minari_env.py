"""What a Minari data set says about its environment."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import OrderedDict
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs.recorded import time_limit
from rayrl_dt.envs.resolve import registered

__all__ = ["env_spec_of", "stored_order"]

_LOG = logging.getLogger(__name__)


def env_spec_of(serialized: Any, dataset_id: str, evaluation: EnvSpec | None = None) -> EnvSpec | None:
    """Return the specification, as it is to be made here; None if it cannot be read.

    Fields that this Gymnasium no longer has are left out, and so is the render mode. Mazes are recorded with a time
    limit of a million steps, which is none: that of the environment to evaluate in takes its place, or the registered.
    """
    if serialized is None:
        return None
    known = {field.name for field in dataclasses.fields(EnvSpec)}
    try:
        values = json.loads(serialized)
        spec = EnvSpec.from_json(json.dumps({key: value for key, value in values.items() if key in known}))
        spec.kwargs.pop("render_mode", None)
        if spec.max_episode_steps is not None:
            spec.max_episode_steps = time_limit(spec.max_episode_steps) or _other_limit(spec, evaluation)
        return spec
    except Exception as error:  # any entry of the specification may be foreign
        _LOG.warning("The environment of %s cannot be recovered (%s); name one yourself.", dataset_id, error)
        return None


def stored_order(space: gym.Space[Any], stored: Any) -> gym.Space[Any]:
    """Give Dict spaces the environment's order of keys, which Minari's deserialization sorts away.

    Args:
        space: as Minari reads it.
        stored: as the file has it: JSON, or what JSON holds; None if it has none.
    """
    if isinstance(stored, str):
        stored = json.loads(stored)
    if isinstance(space, gym.spaces.Dict) and stored is not None:
        parts = stored["subspaces"]
        return gym.spaces.Dict(OrderedDict((k, stored_order(space[k], parts[k])) for k in parts))
    if isinstance(space, gym.spaces.Tuple) and stored is not None:
        return gym.spaces.Tuple(
            [stored_order(a, b) for a, b in zip(space.spaces, stored["subspaces"], strict=True)]
        )
    return space


def _other_limit(spec: EnvSpec, evaluation: EnvSpec | None) -> int | None:
    """Return the limit that takes the place of one that is none."""
    for other in (evaluation, registered(spec.id)):
        if other is not None and time_limit(other.max_episode_steps) is not None:
            return time_limit(other.max_episode_steps)
    return None
