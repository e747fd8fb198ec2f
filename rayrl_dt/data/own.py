"""A store of a user's own episodes, of any space that policies read or act in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.data.info import NOTES, DatasetInfo
from rayrl_dt.data.readers.cleaning import clean
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs.actions import ActionLayout
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.spec_text import writable
from rayrl_dt.errors import UserError
from rayrl_dt.types import RawEpisode, Trajectory, as_array

__all__ = ["store_of_episodes"]


def store_of_episodes(
    episodes: Iterable[RawEpisode], env: gym.Env[Any, Any], *, source: str = "own episodes"
) -> TrajectoryStore:
    """Lay a user's own episodes out as training reads them.

    Observations and actions are flattened as environments will be. Episodes that hold NaN, or are too short, are left
    out, and the store's notes say so.

    Args:
        episodes: as the environment gave and took them; observations are arrays, dicts or tuples of arrays, or lists
            of single observations.
        env: says what the spaces are, and how evaluations make such an environment again. It is not stepped.
        source: what to call the data.

    Raises:
        UserError: a space is not supported, most episodes are bad, or there is none.
    """
    if not isinstance(env, gym.Env):
        raise UserError(f"env is {env!r}; give an environment, such as gym.make('...')")
    flattening, layout = Flattening(env.observation_space), ActionLayout(env.action_space)
    notes = []
    try:
        spec = None if env.spec is None else writable(env.spec)
    except UserError as error:
        spec, notes = None, [f"the environment is not recorded: {error}"]
    info = DatasetInfo(
        source=source,
        observation_space=flattening.flat,
        action_space=layout.flat,
        env_spec=spec,
        metadata={NOTES: notes},
        recorded_space=None if flattening.plain else env.observation_space,
        recorded_actions=None if layout.plain else env.action_space,
    )
    attempts = _attempts(episodes, flattening, layout)
    return TrajectoryStore.from_trajectories(clean(attempts, info, flattening), info)


def _attempts(
    episodes: Iterable[RawEpisode], flattening: Flattening, layout: ActionLayout
) -> Iterator[Callable[[], Trajectory]]:
    for episode in episodes:
        if not isinstance(episode, RawEpisode):
            raise UserError(
                f"an episode is a {type(episode).__name__}; give rayrl_dt.types.RawEpisode(observations, actions, "
                "rewards, terminated)"
            )

        def attempt(episode: RawEpisode = episode) -> Trajectory:
            observations = episode.observations
            if isinstance(observations, list):
                observations = as_array([flattening(observation) for observation in observations])
            else:
                observations = flattening.episode(observations)
            rewards = np.atleast_1d(as_array(episode.rewards))
            return Trajectory(
                observations, layout.episode(episode.actions), rewards, _ended(episode.terminated)
            )

        yield attempt


def _ended(value: Any) -> bool:
    """Return whether an episode ended in a terminal state.

    Raises:
        UserError: it is not one truth.
    """
    array = as_array(value)
    if array.ndim > 0 and array.size != 1:
        raise UserError(
            f"terminated is {array.size} values; it is one for the whole episode, as in terminated[-1]"
        )
    if array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise UserError(f"terminated is {value!r}; it must be true or false, of the whole episode")
    return bool(array.item())
