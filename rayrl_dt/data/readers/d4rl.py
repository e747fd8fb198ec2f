"""Reads the HDF5 files of D4RL as their authors published them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np

from rayrl_dt.data.info import NOTES, DatasetInfo
from rayrl_dt.data.readers import hdf5
from rayrl_dt.data.readers.cleaning import clean
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.types import Trajectory

__all__ = ["SUFFIXES", "read", "refuse_others", "stream"]

SUFFIXES = (".hdf5", ".h5")
"""How names of such files end."""
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_BLOCK_STEPS = 65_536
# Of a feature's standard deviation: observations that are nearer are the same, but for rounding.
_SAME = 1e-3
# Of all steps; with more seams than that, they are none.
_MOST_SEAMS = 0.5
# Of all steps; with more than that behind the last end, ends are missing.
_MOST_UNFINISHED = 0.5
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

    Episodes end at `terminals` and `timeouts`, and where `next_observations` show that the next step is of another
    episode; what follows the last end is an unfinished episode and is left out with a note, as bad episodes are. The
    metadata name the environment; there is no specification, since Gymnasium cannot make it.

    Args:
        path: the file, with flat `observations, actions, rewards, terminals` and perhaps `timeouts` and
            `next_observations`.

    Raises:
        UserError: the file is missing, damaged, of another format, holds no finished episode, or has its steps in no
            order.
    """
    episodes, info = stream(path)
    return list(episodes), info


def stream(path: str | os.PathLike[str]) -> tuple[Iterator[Trajectory], DatasetInfo]:
    """As `read`, one episode at a time: errors in an episode surface when it is reached."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no file {file}; give the path of a D4RL .hdf5 file")
    refuse_others(file)
    with hdf5.open_file(file) as data:
        columns = _columns(file, data)
        ends, notes = _ends(file, columns)
        final = "recorded" if "next_observations" in columns else "repeated"
        info = DatasetInfo(
            source=f"d4rl:{path}",
            observation_space=gym.spaces.Box(-np.inf, np.inf, columns["observations"].shape[1:], np.float32),
            action_space=gym.spaces.Box(-1.0, 1.0, columns["actions"].shape[1:], np.float32),
            metadata={"format": "D4RL HDF5", **_environment(file), "final_observations": final, NOTES: notes},
        )
    return clean(_attempts(file, ends), info, Flattening(info.observation_space)), info


def refuse_others(file: Path) -> None:
    """Say what becomes of data in a file that is no HDF5 file.

    Raises:
        UserError: it is none.
    """
    if file.suffix not in SUFFIXES and not h5py.is_hdf5(file):
        raise UserError(
            f"{file} is no HDF5 file; episodes of your own become a data set with "
            "rayrl_dt.data.own.store_of_episodes, see rayrl_dt/docs/own_environment.md"
        )


def _columns(file: Path, data: Any) -> dict[str, Any]:
    """Return the arrays by name.

    Raises:
        UserError: one is missing, of a wrong shape or length, or no array of numbers in this file.
    """
    missing = [name for name in _REQUIRED if name not in data]
    if missing:
        raise UserError(
            f"{file} has no {', '.join(missing)}; convert it: D4RL files hold {', '.join(_REQUIRED)}"
        )
    columns = {name: hdf5.array(data, name) for name in (*_REQUIRED, *_OPTIONAL) if name in data}
    hdf5.refuse_bombs(file, columns.values())
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{file}: the arrays differ in length {lengths}; download the file again")
    shapes = {name: column.shape for name, column in columns.items()}
    for name, shape in shapes.items():
        wide = name in ("observations", "next_observations", "actions")
        if len(shape) != 2 if wide else shape not in (shape[:1], (*shape[:1], 1)):
            wanted = "an (N, D) array; flatten them first" if wide else "(N,) or (N, 1); convert the file"
            raise UserError(f"{file}: {name} are of shape {shape}, and must be {wanted}")
    if shapes.get("next_observations", shapes["observations"]) != shapes["observations"]:
        raise UserError(
            f"{file}: observations are of shape {shapes['observations']}, next_observations of "
            f"{shapes['next_observations']}; convert the file"
        )
    return columns


def _attempts(file: Path, ends: Array) -> Iterator[Callable[[], Trajectory]]:
    """Yield the episodes; read many of them at once, since the file is compressed in large chunks."""
    firsts = np.concatenate([[0], ends[:-1] + 1])
    with hdf5.open_file(file) as data:
        columns = _columns(file, data)
        number = 0
        while number < len(ends):
            begin = int(firsts[number])
            last = max(number + 1, int(np.searchsorted(ends, begin + _BLOCK_STEPS)))
            stop = int(ends[last - 1]) + 1
            block = {name: _rows(file, column, begin, stop) for name, column in columns.items()}
            for episode in range(number, last):
                steps = slice(int(firsts[episode]) - begin, int(ends[episode]) + 1 - begin)
                yield partial(
                    _trajectory, file, episode, {name: values[steps] for name, values in block.items()}
                )
            number = last


def _trajectory(file: Path, number: int, steps: dict[str, Array]) -> Trajectory:
    final = steps.get("next_observations", steps["observations"])[-1:]
    try:
        return Trajectory(
            observations=_floats(np.concatenate([steps["observations"], final])),
            actions=steps["actions"].astype(np.float32, copy=False),
            rewards=steps["rewards"],
            terminated=bool(steps["terminals"].reshape(-1)[-1]),
        )
    except UserError as error:
        raise UserError(f"{file}, episode {number}: {error}") from error


def _ends(file: Path, columns: dict[str, Any]) -> tuple[Array, list[str]]:
    """Return the index of each episode's last step, and notes."""
    count = len(columns["terminals"])
    terminals, timeouts = (
        _rows(file, columns[name], 0, count).reshape(-1).astype(bool)
        if name in columns
        else np.zeros(count, bool)
        for name in ("terminals", "timeouts")
    )
    notes = []
    if "next_observations" not in columns and "timeouts" not in columns:
        notes.append("there are no timeouts: episodes are split at terminal states only and may be joined")
    ended = terminals | timeouts
    if "next_observations" in columns:
        jumps = _jumps(file, columns)
        seams = jumps & ~ended
        if "timeouts" not in columns:
            if seams.sum() > _MOST_SEAMS * count:
                raise UserError(
                    f"{file}: the steps are not in order, since at {seams.sum():,} of {count:,} next_observations are "
                    "not the observations of the next step, and there are no timeouts; use a version of the file whose "
                    "steps are in order"
                )
            ended |= seams
        elif seams.sum() > _MOST_SEAMS * count:
            notes.append(
                "next_observations are not the observations of the next step; its flags alone end episodes"
            )
        elif seams.any():
            # A late flag stands at the first step of an episode that goes on, an early one at the last step but one.
            goes_on = timeouts & ~terminals & ~jumps
            late, early = np.zeros((2, count), bool)
            late[1:] = seams[:-1] & goes_on[1:]
            early[:-1] = seams[1:] & goes_on[:-1] & ~late[:-1]
            ended = (ended | seams) & ~late & ~early
            shifted = ((late, "late"), (early, "early"))
            notes.append(
                f"episodes end where next_observations jump without a flag: {seams.sum():,} seams"
                + "".join(
                    f", at {where.sum():,} of which the flag comes one step {how}"
                    for where, how in shifted
                    if where.any()
                )
            )
    ends = np.flatnonzero(ended)
    if len(ends) == 0:
        raise UserError(f"{file} holds no finished episode; use a version of the file that has timeouts")
    unfinished = count - 1 - int(ends[-1])
    if unfinished:
        remedy = "; if episodes ended there, mark their last steps in timeouts"
        notes.append(
            f"the last {unfinished:,} of {count:,} steps are of an unfinished episode and are left out"
            + (remedy if unfinished > _MOST_UNFINISHED * count else "")
        )
    return ends, notes


def _jumps(file: Path, columns: dict[str, Any]) -> Array:
    """Return where the next step's observation is not the recorded successor; the last step is none."""
    count = len(columns["observations"])
    jumps = np.zeros(count, bool)
    tolerance = None
    for begin in range(0, count - 1, _BLOCK_STEPS):
        stop = min(begin + _BLOCK_STEPS, count - 1)
        after = _floats(_rows(file, columns["observations"], begin + 1, stop + 1))
        if tolerance is None:
            whole = after[np.isfinite(after).all(axis=1)]
            tolerance = _SAME * whole.std(axis=0) if len(whole) else 0.0
        apart = np.abs(_rows(file, columns["next_observations"], begin, stop) - after)
        jumps[begin:stop] = (apart > tolerance).any(axis=1)
    return jumps


def _floats(values: Array) -> Array:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _environment(file: Path) -> dict[str, Any]:
    match = _FILE_NAME.fullmatch(file.stem)
    if match is None:
        return {}
    quality = match["quality"].replace("_", "-").replace("mixed", "medium-replay")
    return {
        "d4rl_id": f"{match['env']}-{quality}-v{match['version'] or 0}",
        "environment": f"{_ENVIRONMENTS[match['env']]}-v2",
    }


def _rows(file: Path, column: Any, begin: int, stop: int) -> Array:
    try:
        rows: Array = column[begin:stop]
    except Exception as error:  # h5py raises many types on damaged files
        raise UserError(
            f"{file}: {column.name} cannot be read ({one_line(error)}); download the file again"
        ) from error
    return rows
