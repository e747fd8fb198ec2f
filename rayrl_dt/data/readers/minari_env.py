"""What a Minari data set says about its environment."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs.recorded import time_limit
from rayrl_dt.envs.resolve import registered

__all__ = ["env_spec_of"]

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


def _other_limit(spec: EnvSpec, evaluation: EnvSpec | None) -> int | None:
    """Return the limit that takes the place of one that is none."""
    for other in (evaluation, registered(spec.id)):
        if other is not None and time_limit(other.max_episode_steps) is not None:
            return time_limit(other.max_episode_steps)
    return None
