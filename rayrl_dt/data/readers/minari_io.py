"""Reads and writes Minari data sets.

Reading goes to the HDF5 file directly: Minari's own iteration also decodes every `info`, which is most of the
bytes of some data sets. Writing goes through Minari's storage, so that Minari reads it back.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage, is_image_space

from rayrl_dt.data.info import NOTES
from rayrl_dt.data.readers import hdf5
from rayrl_dt.data.readers.atari_screens import (
    FRAME_SPACE,
    SCREENS_NOTE,
    are_screens,
    in_frames,
    preprocessed,
)
from rayrl_dt.data.readers.cleaning import clean
from rayrl_dt.data.readers.minari_env import env_spec_of, stored_order
from rayrl_dt.data.readers.minari_frames import compress_images
from rayrl_dt.data.readers.minari_local import (
    HEADER,
    check_id,
    data_folder,
    datasets_root,
    exists,
    first_line,
    list_local,
    mark_namespaces,
)
from rayrl_dt.data.staging import check_replaceable, publish, stage
from rayrl_dt.data.store import DatasetInfo
from rayrl_dt.envs.actions import ActionLayout
from rayrl_dt.envs.observations import Flattening, has_numbers, parts_of
from rayrl_dt.envs.spec_text import unmarked
from rayrl_dt.errors import UserError
from rayrl_dt.types import RawEpisode, Trajectory

__all__ = ["data_folder", "datasets_root", "exists", "list_local", "read", "stream", "write"]

_METADATA_KEYS = (
    "dataset_id",
    "author",
    "author_email",
    "algorithm_name",
    "description",
    "code_permalink",
    "minari_version",
    "requirements",
    "ref_min_score",
    "ref_max_score",
    "combined_datasets",
    "seed",
)


def read(dataset_id: str, *, download: bool = False) -> tuple[list[Trajectory], DatasetInfo]:
    """Read a whole data set.

    Observations that are neither vectors nor pictures are flattened (`rayrl_dt.envs.observations`); bad episodes are
    left out.

    Args:
        dataset_id: for instance `mujoco/hopper/medium-v0`.
        download: fetch it if it is not there locally.

    Raises:
        UserError: it is neither here nor to be had, or it is damaged, or most of its episodes are bad.
    """
    episodes, info = stream(dataset_id, download=download)
    return list(episodes), info


def stream(dataset_id: str, *, download: bool = False) -> tuple[Iterator[Trajectory], DatasetInfo]:
    """As `read`, one episode at a time: errors in an episode surface when it is reached."""
    folder = data_folder(dataset_id, download=download)
    try:
        raw = MinariStorage.read_raw_metadata(folder)
        storage = MinariStorage.read(folder)
        space = stored_order(storage.observation_space, raw.get("observation_space"))
        total = int(raw["total_episodes"])
    except Exception as error:
        raise _damaged(folder, error) from error
    known = {key: raw[key] for key in _METADATA_KEYS if key in raw}
    # NaN and infinity are no JSON, and no score.
    metadata = json.loads(json.dumps(known), parse_constant=lambda _: None)
    evaluation_spec = env_spec_of(raw.get("eval_env_spec"), dataset_id)
    env_spec = env_spec_of(raw.get("env_spec"), dataset_id, evaluation_spec)
    for key, spec in (("environment", env_spec), ("evaluation_environment", evaluation_spec)):
        if spec is not None:
            metadata[key] = spec.id
    flattening, layout = Flattening(space), ActionLayout(storage.action_space)
    screens = False
    if env_spec is not None and are_screens(env_spec, space):
        screens, env_spec = True, preprocessed(env_spec)
        metadata[NOTES] = [SCREENS_NOTE]
    info = DatasetInfo(
        source=f"minari:{dataset_id}",
        observation_space=FRAME_SPACE if screens else flattening.flat,
        action_space=layout.flat,
        env_spec=env_spec,
        metadata=metadata,
        recorded_space=None if flattening.plain else space,
        evaluation_spec=evaluation_spec,
        recorded_actions=None if layout.plain else layout.space,
    )
    decoded = raw.get("jpeg_encoding", True) and any(is_image_space(part) for _, part in parts_of(space))
    attempts = _attempts(folder, storage, flattening, layout, total, jpeg=decoded)
    return clean(map(in_frames, attempts) if screens else attempts, info, flattening), info


def write(
    dataset_id: str,
    trajectories: Iterable[Trajectory | RawEpisode],
    *,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    env_spec: EnvSpec | str | None,
    author: str,
    algorithm_name: str,
    description: str,
    requirements: Sequence[str] = (),
    ref_min_score: float | None = None,
    ref_max_score: float | None = None,
    code_permalink: str | None = None,
    evaluation_spec: EnvSpec | None = None,
    seed: int | None = None,
    overwrite: bool = False,
) -> str:
    """Write a data set that `minari.load_dataset` reads; it appears whole or not at all.

    Args:
        dataset_id: `(namespace/)name-vN`.
        trajectories: the episodes, read once; `RawEpisode` where the observations are not single arrays.
        observation_space: of the environment, not flattened.
        action_space: of the environment.
        env_spec: the environment's specification or registered id, for `recover_environment`.
        author: who made the data.
        algorithm_name: what acted.
        description: what one has to know about the data.
        requirements: pip requirements of the environment.
        ref_min_score: raw return of a random policy; with `ref_max_score`, for normalized scores.
        ref_max_score: raw return of an expert.
        code_permalink: where the generating code is.
        evaluation_spec: of the environment that policies are to be evaluated in, if it is another.
        seed: of everything that was random in the making.
        overwrite: replace a data set of that id; a folder there that is none is left alone.

    Returns:
        The data set id.

    Raises:
        UserError: the id is malformed or taken, an episode does not fit the spaces, or no file can hold an argument
            of the environment.
    """
    check_id(dataset_id)
    target = datasets_root() / dataset_id
    taken = UserError(
        f"the data set {dataset_id} exists in {datasets_root()}; choose another id or overwrite it"
    )
    if target.exists() and not overwrite:
        raise taken
    if overwrite:
        check_replaceable(target, HEADER)
    if (ref_min_score is None) != (ref_max_score is None):
        raise UserError("give both ref_min_score and ref_max_score, or neither")
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "author": {author},
        "algorithm_name": algorithm_name,
        "description": description,
        "minari_version": minari.__version__,
        "requirements": list(requirements),
    }
    if ref_min_score is not None and ref_max_score is not None:
        metadata |= {"ref_min_score": float(ref_min_score), "ref_max_score": float(ref_max_score)}
    optional = {
        "code_permalink": code_permalink,
        "eval_env_spec": None if evaluation_spec is None else unmarked(evaluation_spec).to_json(),
        "seed": seed,
    }
    metadata |= {key: value for key, value in optional.items() if value is not None}
    spec = gym.spec(env_spec) if isinstance(env_spec, str) else env_spec
    spec = None if spec is None else unmarked(spec)
    aside = stage(target)
    try:
        storage = MinariStorage.new(
            aside / "data",
            observation_space=observation_space,
            action_space=action_space,
            env_spec=spec,
            **_losslessly(observation_space, action_space),
        )
        storage.update_metadata(metadata)
        storage.update_episodes(_buffers(trajectories, observation_space, action_space))
        if not storage.total_episodes:
            raise UserError(f"no episodes were given for {dataset_id}; collect some first")
        compress_images(aside / "data" / "main_data.hdf5")
        if not publish(aside, target, header=HEADER if overwrite else None):
            raise taken
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    mark_namespaces(dataset_id)
    return dataset_id


def _losslessly(*spaces: gym.Space[Any]) -> dict[str, Any]:
    """Return the option of Minari's storage that keeps bytes as they are; Minari 0.5.3 has none.

    Raises:
        UserError: these spaces need it.
    """
    if "jpeg_encoding" in inspect.signature(MinariStorage.new).parameters:
        return {"jpeg_encoding": False}
    if any(part.dtype == np.uint8 for space in spaces for _, part in parts_of(space)):
        raise UserError(
            f"Minari {minari.__version__} writes bytes as JPEG, with losses; install minari>=0.5.4, which needs "
            "Python 3.11 or newer"
        )
    return {}


def _attempts(
    folder: Path,
    storage: MinariStorage,
    flattening: Flattening,
    layout: ActionLayout,
    total: int,
    *,
    jpeg: bool,
) -> Iterator[Callable[[], Trajectory]]:
    try:
        for number, values in enumerate(_episodes(folder, storage, flattening.space, total, jpeg=jpeg)):
            yield partial(_trajectory, f"{folder}, episode_{number}", flattening, layout, values)
    except UserError:
        raise
    except Exception as error:  # h5py raises many types on damaged files
        raise _damaged(folder, error) from error


def _trajectory(
    name: str, flattening: Flattening, layout: ActionLayout, values: Mapping[str, Any]
) -> Trajectory:
    try:
        return Trajectory(
            observations=flattening.episode(values["observations"]),
            actions=layout.episode(values["actions"]),
            rewards=np.asarray(values["rewards"]),
            terminated=bool(np.any(values["terminations"][-1:])),
        )
    except (UserError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{name}: {error}") from error


def _episodes(
    folder: Path, storage: MinariStorage, space: gym.Space[Any], total: int, *, jpeg: bool
) -> Iterator[Mapping[str, Any]]:
    path = folder / "main_data.hdf5"
    if not path.exists():
        yield from storage.get_episodes(range(total))
        return
    with hdf5.open_file(path) as file:
        for number in range(total):
            if jpeg:
                # Minari's decoding reads everything that is there.
                hdf5.refuse_bombs(path, hdf5.arrays(file, f"episode_{number}"))
                yield from storage.get_episodes([number])
                continue
            group = hdf5.child(file, f"episode_{number}")
            yield {
                "observations": _values(group, "observations", space),
                **{key: hdf5.content(group, key) for key in ("actions", "rewards", "terminations")},
            }


def _values(group: Any, name: str, space: gym.Space[Any]) -> Any:
    """Read the parts of a space that hold numbers, in dicts and tuples as the space has them."""
    if isinstance(space, gym.spaces.Dict):
        node = hdf5.child(group, name)
        return {key: _values(node, key, part) for key, part in space.spaces.items() if has_numbers(part)}
    if isinstance(space, gym.spaces.Tuple):
        node = hdf5.child(group, name)
        return tuple(
            _values(node, f"_index_{i}", part) if has_numbers(part) else None
            for i, part in enumerate(space.spaces)
        )
    return hdf5.content(group, name)


def _buffers(
    trajectories: Iterable[Trajectory | RawEpisode],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
) -> Iterator[EpisodeBuffer]:
    flattening, layout = Flattening(observation_space), ActionLayout(action_space)
    for number, episode in enumerate(trajectories):
        try:
            # Written only if it reads back: right lengths and shapes, finite.
            checked = Trajectory(
                flattening.episode(episode.observations),
                layout.episode(episode.actions),
                np.asarray(episode.rewards),
                episode.terminated,
            )
        except UserError as error:
            raise UserError(f"episode {number}: {error}") from error
        last = np.arange(len(checked)) == len(checked) - 1
        yield EpisodeBuffer(
            seed=getattr(episode, "seed", None),
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=last & episode.terminated,
            truncations=last & (not episode.terminated),
            infos=getattr(episode, "infos", None),
        )


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} is damaged or not a Minari data set ({type(error).__name__}: {first_line(error)}); "
        "delete it and download or make it again"
    )
