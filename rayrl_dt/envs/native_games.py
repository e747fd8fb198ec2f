"""Several Atari games in threads of ale-py's own, behind the interface of Gymnasium's vector environments.

Chosen by `env_runners.gym_env_vectorize_mode: vector_entry_point`. It computes the frames, rewards and ends of
`AtariPreprocessing`, which `tests/envs/test_native_games.py` holds it to, and takes less of the CPU. It differs in two
ways that no option of it closes: no-ops are 0 to `noop_max` - 1, where Gymnasium has 1 to `noop_max`, so that a seed
begins another game; and the limit of emulated frames is counted from behind them. A slot that has done its episodes
plays on until all have, and counts for nothing.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import batch_space

from rayrl_dt.envs.atari import PREPROCESSING, is_game
from rayrl_dt.errors import UserError

__all__ = ["NATIVE", "NativeGames"]

NATIVE = "vector_entry_point"
"""Gymnasium's name for a vector environment that an environment's package brings with it."""

_KEPT = ("repeat_action_probability", "full_action_space", "max_num_frames_per_episode")
# What it cannot do otherwise; further arguments of a game or of its preprocessing are refused.
_FIXED = {
    "frameskip": 1,
    "obs_type": "rgb",
    "terminal_on_life_loss": False,
    "grayscale_obs": True,
    "grayscale_newaxis": False,
    "scale_obs": False,
}
_RENAMED = {"frame_skip": "frameskip", "noop_max": "noop_max"}


class NativeGames(gym.vector.VectorEnv[Any, Any, Any]):
    """Games of one kind, each frame `(H, W)` of its own: stacking is the model's business.

    Args:
        spec: of a game with `AtariPreprocessing` around it.
        num_envs: how many.

    Raises:
        UserError: the environment is no game, or something is asked of it that ale-py's threads cannot do.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        options = _options(spec)
        from ale_py.vector_env import AtariVectorEnv

        self._games = AtariVectorEnv(num_envs=num_envs, **options)
        self.spec = spec
        self.num_envs = num_envs
        self.metadata = {**self._games.metadata}
        self.single_action_space = self._games.single_action_space
        self.action_space = self._games.action_space
        size = options["img_height"], options["img_width"]
        self.single_observation_space = gym.spaces.Box(0, 255, size, np.uint8)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start every game afresh; a seed decides over its no-ops, and over sticky actions."""
        given: Any = seed
        if isinstance(given, list):
            given = np.array([-1 if each is None else each for each in given], np.int64)
        found: Any = self._games.reset(seed=given)
        observations, infos = found
        return observations[:, 0], infos  # (N, 1, H, W) -> (N, H, W)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act once in every game.

        Raises:
            UserError: an action is none of the game's; ale-py would wait for ever.
        """
        taken, space = np.asarray(actions), self.single_action_space
        assert isinstance(space, gym.spaces.Discrete)
        count = int(space.n)
        if taken.dtype.kind not in "iu" or ((taken < 0) | (taken >= count)).any():
            raise UserError(
                f"actions {taken} are not all among the {count} of {self._name}, 0 to {count - 1}; train the policy on "
                "data of this game with the same set of actions"
            )
        observations, rewards, terminated, truncated, infos = self._games.step(taken.astype(np.int32))
        return observations[:, 0], rewards, terminated, truncated, infos

    @property
    def _name(self) -> str:
        return "the game" if self.spec is None else self.spec.id


def _options(spec: EnvSpec) -> dict[str, Any]:
    """Return the arguments of ale-py's vector environment that play a game as its specification says.

    Raises:
        UserError: there are none.
    """

    def refused(what: str) -> UserError:
        return UserError(
            f"env_runners.gym_env_vectorize_mode {NATIVE} plays Atari games with AtariPreprocessing alone, and {what}; "
            "set gym_env_vectorize_mode: sync"
        )

    wrappers = spec.additional_wrappers
    if not is_game(spec.id):
        raise refused(f"{spec.id} is none")
    if [each.entry_point for each in wrappers] != [PREPROCESSING]:
        around = ", ".join(each.name for each in wrappers) or "nothing"
        raise refused(f"{spec.id} has {around} around it")
    asked = {**spec.kwargs, **(wrappers[0].kwargs or {})}
    size = asked.pop("screen_size", 84)
    height, width = (size, size) if isinstance(size, int) else reversed(size)
    options = {"game": asked.pop("game"), "img_height": height, "img_width": width}
    options |= {name: asked.pop(name) for name in _KEPT if name in asked}
    options |= {ours: asked.pop(name) for name, ours in _RENAMED.items() if name in asked}
    for name, value in asked.items():
        if _FIXED.get(name) != value:
            raise refused(f"{spec.id} has {name} {value!r}")
    return {
        **options,
        "stack_num": 1,
        "reward_clipping": False,
        "use_fire_reset": False,
        "episodic_life": False,
        "autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP,
    }
