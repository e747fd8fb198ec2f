"""A user's script: it registers environments, then does what `rayrl-dt` does.

`python own_script.py train config.yaml`
"""

from __future__ import annotations

import gymnasium as gym
from gymnasium.wrappers import TimeLimit
from own_envs import Walk
from ray.tune.registry import register_env

from rayrl_dt.cli.main import main


def register() -> None:
    """Register what no other process knows."""
    gym.register("Script-v0", entry_point=Walk, kwargs={"size": 2.0}, max_episode_steps=8)
    register_env("ray-walk", lambda config: TimeLimit(Walk(config["size"]), 8))


if __name__ == "__main__":
    register()
    main()
