"""Environments: by name or as data recorded them, made in any process; and the toy environments of the papers.

Importing this package registers our own environments with Gymnasium, so `gym.make("rayrl_dt.envs:ID")`
works anywhere, and `rayrl_dt.envs.make(ID)` inside any Ray worker.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rayrl_dt.envs.key_to_door import KeyToDoor
from rayrl_dt.envs.recorded import RecordedEnv
from rayrl_dt.envs.vector import check_spaces, vectorize

__all__ = ["KeyToDoor", "RecordedEnv", "check_spaces", "make", "register", "vectorize"]


def make(name: str, /, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make the environment that the user names, with arguments; see `RecordedEnv.named`.

    Raises:
        UserError: it is unknown, needs a package that is missing, or refuses `kwargs`.
    """
    return RecordedEnv.named(name, **kwargs).make()


def register() -> None:
    """Register our environments with Gymnasium; calling it again changes nothing."""
    if "rayrl_dt/KeyToDoor-v0" not in gym.registry:
        gym.register(
            id="rayrl_dt/KeyToDoor-v0",
            entry_point="rayrl_dt.envs.key_to_door:KeyToDoor",
            # The environment ends by itself at this step; the limit tells others how long an episode is.
            max_episode_steps=sum(KeyToDoor.room_steps),
        )


register()
