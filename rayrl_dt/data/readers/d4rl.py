"""Reads the HDF5 files of D4RL as their authors published them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np

from rayrl_dt.data.store import DatasetInfo
from rayrl_dt.errors import UserError
from rayrl_dt.types import Trajectory

__all__ = ["read", "stream"]

_LOG = logging.getLogger(__name__)
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_BLOCK_STEPS = 65_536
# Gym's MuJoCo tasks, which D4RL recorded in the -v2 environments whatever the version of the data set.
_FILE_NAME = re.compile(
    r"(?P<env>hopper|halfcheetah|walker2d|ant)[-_]"
    r"(?P<quality>random|medium|expert|medium[-_]replay|medium[-_]expert|full[-_]replay|mixed)"
    r"(?:-v(?P<version>\d+))?"
)
_ENVIRONMENTS = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d", "ant": "Ant"}

Array = np.ndarray[Any, Any]


def read(path: str | os.PathLike[str]) -> tuple[list[Trajectory], DatasetInfo]:
    """Read a file such as `hopper_medium_replay-v2.hdf5`.

    Episodes end at `terminals` and `timeouts`; what follows the last end is an unfinished episode and is
    dropped. The metadata name the environment; there is no specification, since Gymnasium cannot make it.

    Args:
        path: the file, with flat `observations, actions, rewards, terminals` and perhaps `timeouts` and
            `next_observations`.

    Raises:
        UserError: the file is missing, damaged, of another format, or holds no finished episode.
    """
    episodes, info = stream(path)
    return list(episodes), info


def stream(path: str | os.PathLike[str]) -> tuple[Iterator[Trajectory], DatasetInfo]:
    """As `read`, one episode at a time: errors in an episode surface when it is reached."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file {file}; give the path of a D4RL .hdf5 file")
    with _open(file) as data:
        missing = [name for name in _REQUIRED if name not in data]
        if missing:
            raise UserError(
                f"{file} has no {', '.join(missing)}; convert it: D4RL files hold {', '.join(_REQUIRED)}"
            )
        lengths = {name: len(data[name]) for name in _REQUIRED}
        if len(set(lengths.values())) != 1:
            raise UserError(f"{file}: the arrays differ in length {lengths}; download the file again")
        if data["observations"].ndim != 2 or data["actions"].ndim != 2:
            raise UserError(f"{file}: observations and actions must be (N, D) arrays; flatten them first")
        metadata: dict[str, Any] = {"format": "D4RL HDF5", **_environment(file)}
        metadata["final_observations"] = "recorded" if "next_observations" in data else "repeated"
        info = DatasetInfo(
            source=f"d4rl:{path}",
            observation_space=gym.spaces.Box(-np.inf, np.inf, data["observations"].shape[1:], np.float32),
            action_space=gym.spaces.Box(-1.0, 1.0, data["actions"].shape[1:], np.float32),
            metadata=metadata,
        )
        ends = _episode_ends(file, data)
        largest = float(np.abs(_rows(file, data, "actions", 0, int(ends[-1]) + 1)).max())
        if largest > 1 + 1e-5:
            raise UserError(
                f"{file} holds actions up to {largest:g}, D4RL's lie in [-1, 1]; rescale them first"
            )
    return _episodes(file, ends), info


def _episodes(file: Path, ends: Array) -> Iterator[Trajectory]:
    """Yield the episodes; read many of them at once, since the file is compressed in large chunks."""
    firsts = np.concatenate([[0], ends[:-1] + 1])
    with _open(file) as data:
        names = [name for name in (*_REQUIRED, "next_observations") if name in data]
        number = 0
        while number < len(ends):
            begin = int(firsts[number])
            last = max(number + 1, int(np.searchsorted(ends, begin + _BLOCK_STEPS)))
            stop = int(ends[last - 1]) + 1
            block = {name: _rows(file, data, name, begin, stop) for name in names}
            for episode in range(number, last):
                steps = slice(int(firsts[episode]) - begin, int(ends[episode]) + 1 - begin)
                yield _trajectory(file, episode, {name: values[steps] for name, values in block.items()})
            number = last


def _trajectory(file: Path, number: int, steps: dict[str, Array]) -> Trajectory:
    final = steps.get("next_observations", steps["observations"])[-1:]
    try:
        return Trajectory(
            observations=np.concatenate([steps["observations"], final]).astype(np.float32, copy=False),
            actions=steps["actions"].astype(np.float32, copy=False),
            rewards=steps["rewards"].reshape(-1).astype(np.float32, copy=False),
            terminated=bool(steps["terminals"].reshape(-1)[-1]),
        )
    except UserError as error:
        raise UserError(f"{file}, episode {number}: {error}") from error


def _episode_ends(file: Path, data: Any) -> Array:
    """Return the index of each episode's last step."""
    count = len(data["terminals"])
    ended = _rows(file, data, "terminals", 0, count).reshape(-1).astype(bool)
    if "timeouts" in data:
        ended |= _rows(file, data, "timeouts", 0, count).reshape(-1).astype(bool)
    elif "next_observations" in data:
        for begin in range(0, count - 1, _BLOCK_STEPS):
            stop = min(begin + _BLOCK_STEPS, count - 1)
            after = _rows(file, data, "observations", begin + 1, stop + 1)
            ended[begin:stop] |= (_rows(file, data, "next_observations", begin, stop) != after).any(axis=1)
    else:
        _LOG.warning(
            "%s has no timeouts: episodes are split at terminal states only and may be joined.", file
        )
    ends = np.flatnonzero(ended)
    if len(ends) == 0:
        raise UserError(f"{file} holds no finished episode; use a version of the file that has timeouts")
    return ends


def _environment(file: Path) -> dict[str, Any]:
    match = _FILE_NAME.fullmatch(file.stem)
    if match is None:
        return {}
    quality = match["quality"].replace("_", "-").replace("mixed", "medium-replay")
    return {
        "d4rl_id": f"{match['env']}-{quality}-v{match['version'] or 0}",
        "environment": f"{_ENVIRONMENTS[match['env']]}-v2",
    }


def _open(file: Path) -> Any:
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise UserError(f"{file} is truncated or not an HDF5 file ({error}); download it again") from error


def _rows(file: Path, data: Any, name: str, begin: int, stop: int) -> Array:
    try:
        rows: Array = data[name][begin:stop]
    except Exception as error:  # h5py raises many types on damaged files
        raise UserError(f"{file}: {name} cannot be read ({error}); download the file again") from error
    return rows
