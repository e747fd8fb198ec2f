"""Reads the replay of DQN agents that Dopamine published (Agarwal et al. 2020), and takes the papers' 1% of it.

A folder `Game/RUN/replay_logs` holds shards of a million rows, each of six gzipped arrays; a seventh file, which newer
versions write, is a pickle and never opened. Frames are single and follow one another; three rows of zeros precede each
episode and are no steps. The first episode of a shard lacks its beginning, the last its end, and the last row of a full
shard is stale: all three are left out. Nothing is unpickled, and no array of frames is ever held whole.

The 1% is that of Decision Transformer's and RADT's code: shards are drawn at random, each visit goes on where the last
one ended and takes eleven episodes (the code means ten), and nothing behind the first 100,000 rows of a shard is read.
Theirs also takes the rows of zeros for steps. The frame after an episode's last action was not kept: the last one
stands for it.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import gymnasium as gym
import numpy as np

from rayrl_dt.data.array_files import read_header
from rayrl_dt.data.info import NOTES, DatasetInfo
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.resolve import registered
from rayrl_dt.errors import UserError, one_line, whole
from rayrl_dt.seeding import numpy_generator
from rayrl_dt.types import Trajectory

__all__ = ["Sample", "files", "stream"]

Array = np.ndarray[Any, Any]

_FRAME = (84, 84)
_COLUMNS = {
    "action": ("$store$_action", "i"),
    "reward": ("$store$_reward", "f"),
    "terminal": ("$store$_terminal", "iu"),
}
_FRAMES, _COUNT = "$store$_observation", "add_count"
_NAME = re.compile(r"^(.+)_ckpt\.(\d+)\.gz$")
_NEEDED = (_FRAMES, *(name for name, _ in _COLUMNS.values()), _COUNT, "invalid_range")
_VISIT = 11
_REACH = 100_000
_PADDING = 3


@dataclass(frozen=True)
class Sample:
    """Which part of the shards is read.

    Attributes:
        steps: at least so many, if the shards have them.
        seed: of the order in which shards are visited.
    """

    steps: int = 500_000
    seed: int = 123

    @classmethod
    def parse(cls, text: str) -> tuple[Path, Sample]:
        """Return folder and sample of `FOLDER` or `FOLDER#steps=N,seed=N`.

        Raises:
            UserError: an option is unknown or no whole number.
        """
        folder, _, options = text.partition("#")
        values = {}
        for option in filter(None, options.split(",")):
            name, _, value = option.partition("=")
            if name not in ("steps", "seed") or not value.isdigit():
                raise UserError(
                    f"the source dqn-replay:{text} has the option {option!r}; allowed are steps and seed, as in "
                    f"dqn-replay:{folder}#steps=500000,seed=123"
                )
            values[name] = int(value)
        if "steps" in values:
            whole("steps of the source", values["steps"], least=1)
        return Path(folder).expanduser(), cls(**values)


def files(folder: Path) -> list[Path]:
    """Return the files of all shards of a folder, or of the `replay_logs` in it, without the pickles."""
    place = folder / "replay_logs" if (folder / "replay_logs").is_dir() else folder
    found = [path for path in place.iterdir() if _part(path) in _NEEDED] if place.is_dir() else []
    return sorted(found)


def stream(folder: Path, sample: Sample) -> tuple[Iterator[Trajectory], DatasetInfo]:
    """Return the sampled episodes, shard by shard, and what there is to know of them.

    Raises:
        UserError: the folder holds no shards, a file is missing or damaged, or the game is unknown.
    """
    shards = _shards(folder)
    env = _game(folder)
    made = env.make()
    actions = made.action_space
    made.close()
    info = DatasetInfo(
        source=f"dqn-replay:{folder}",
        observation_space=gym.spaces.Box(0, 255, _FRAME, np.uint8),
        action_space=actions,
        env_spec=env.spec(),
        metadata={
            NOTES: [
                "rewards were clipped to [-1, 1] when they were kept, so returns and targets count rewarded steps, and "
                "evaluations the score itself",
                "where an episode was cut it counts as ended, which the files do not tell apart",
            ]
        },
    )
    return _episodes(shards, sample), info


@dataclass(frozen=True)
class _Shard:
    """The files of a shard by what they hold."""

    number: int
    files: dict[str, Path]

    def columns(self) -> dict[str, Array]:
        """Return actions, rewards and terminals of the rows that can be used."""
        found = {}
        for name, (part, kinds) in _COLUMNS.items():
            found[name] = _read(self.files[part], kinds)
        lengths = {name: len(values) for name, values in found.items()}
        with _opened(self.files[_FRAMES]) as (_, shape, dtype):
            if dtype != np.uint8 or shape[1:] != _FRAME:
                raise UserError(
                    f"{self.files[_FRAMES]} holds {dtype} of shape {shape}, no frames (uint8, 84 x 84); get it again"
                )
            lengths["observation"] = shape[0]
        if len(set(lengths.values())) > 1:
            raise UserError(
                f"the files of shard {self.number} in {self.files[_FRAMES].parent} have unequal lengths {lengths}"
            )
        count, length = int(_read(self.files[_COUNT], "iu")), lengths["observation"]
        usable = count if count < length else length - 1
        return {name: values[: min(usable, _REACH)] for name, values in found.items()}


def _shards(folder: Path) -> list[_Shard]:
    by_number: dict[int, dict[str, Path]] = {}
    for path in files(folder):
        match = _NAME.match(path.name)
        assert match is not None
        by_number.setdefault(int(match[2]), {})[match[1]] = path
    if not by_number:
        raise UserError(
            f"there are no shards in {folder}; name the folder Game/RUN/replay_logs of a DQN replay"
        )
    for number, found in by_number.items():
        for part in _NEEDED:
            if part not in found:
                raise UserError(
                    f"{folder} lacks {part}_ckpt.{number}.gz; copy all files of the shard, or none of them"
                )
    return [_Shard(number, by_number[number]) for number in sorted(by_number)]


def _game(folder: Path) -> RecordedEnv:
    for name in (folder.resolve().name, *(parent.name for parent in folder.resolve().parents)):
        if registered(f"ALE/{name}-v5") is not None:
            return RecordedEnv.named(f"ALE/{name}-v5")
    raise UserError(
        f"no folder of {folder} is named as a game; keep the published layout, Game/RUN/replay_logs"
    )


def _episodes(shards: list[_Shard], sample: Sample) -> Iterator[Trajectory]:
    columns = [shard.columns() for shard in shards]
    spans = [_whole_episodes(each["terminal"]) for each in columns]
    for shard, column, whole_ones, taken in zip(shards, columns, spans, _visits(spans, sample), strict=True):
        yield from _read_episodes(shard, column, whole_ones[:taken])


def _whole_episodes(terminals: Array) -> list[tuple[int, int]]:
    """Return first row and row behind the last of each whole episode, its padding included."""
    ends = np.flatnonzero(terminals) + 1
    return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))


def _visits(spans: list[list[tuple[int, int]]], sample: Sample) -> list[int]:
    """Return how many episodes of each shard are taken."""
    rng = numpy_generator(sample.seed, "dqn-replay")
    taken, steps = [0] * len(spans), 0
    left = [number for number, each in enumerate(spans) if each]
    while steps < sample.steps and left:
        number = int(rng.choice(left))
        new = spans[number][taken[number] : taken[number] + _VISIT]
        taken[number] += len(new)
        steps += sum(end - begin - _PADDING for begin, end in new)
        if taken[number] == len(spans[number]):
            left.remove(number)
    return taken


def _read_episodes(
    shard: _Shard, column: dict[str, Array], spans: list[tuple[int, int]]
) -> Iterator[Trajectory]:
    file, row = shard.files[_FRAMES], 0
    with _opened(file) as (content, _, _):
        for begin, end in spans:
            while row < begin:
                row += len(_frames(content, file, min(begin - row, 256)))
            frames = _frames(content, file, end - begin)
            row = end
            zero = sum(
                not (frames[i].any() or column["action"][begin + i] or column["reward"][begin + i])
                for i in range(min(_PADDING, len(frames) - 1))
            )
            kept = slice(begin + zero, end)
            yield Trajectory(
                observations=np.concatenate([frames[zero:], frames[-1:]]),
                actions=column["action"][kept].astype(np.int64),
                rewards=column["reward"][kept].astype(np.float32),
                terminated=True,
            )


def _frames(content: IO[bytes], file: Path, count: int) -> Array:
    size = count * _FRAME[0] * _FRAME[1]
    return np.frombuffer(_bytes(content, file, size), np.uint8).reshape(count, *_FRAME)


def _bytes(content: IO[bytes], file: Path, size: int) -> bytes:
    try:
        found = content.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file, error) from error
    if len(found) < size:
        raise _damaged(file, EOFError("it ends too early"))
    return found


@contextmanager
def _opened(file: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """Open a file up to its content; give that, shape and type."""
    with cast("IO[bytes]", gzip.open(file)) as content:
        try:
            shape, dtype = read_header(content)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise _damaged(file, error) from error
        yield content, shape, dtype


def _read(file: Path, kinds: str) -> Array:
    """Return a small array whole."""
    with _opened(file) as (content, shape, dtype):
        if dtype.kind not in kinds or len(shape) > 1:
            raise UserError(
                f"{file} holds {dtype} of shape {shape}, not what a shard has there; get it again"
            )
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(_bytes(content, file, size), dtype).reshape(shape)


def _part(path: Path) -> str | None:
    match = _NAME.match(path.name)
    return None if match is None else match[1]


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is truncated or damaged ({one_line(error)}); get it again")
