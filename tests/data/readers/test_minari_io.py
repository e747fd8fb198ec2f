from __future__ import annotations

import json
import os
import re
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from builders import writes_bytes
from gymnasium.spaces.utils import flatten

from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.types import RawEpisode, Trajectory

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = gym.spaces.Box(-1, 1, (2,), np.float32)


def _write(trajectories: Any, dataset_id: str = "toy/test-v0", **options: Any) -> str:
    options = {
        "observation_space": BOX,
        "action_space": ACTIONS,
        "env_spec": "Pendulum-v1",
        "author": "tests",
        "algorithm_name": "noise",
        "description": "Random numbers.",
        **options,
    }
    return minari_io.write(dataset_id, trajectories, **options)


def _file(dataset_id: str = "toy/test-v0") -> Path:
    return minari_io.datasets_root() / dataset_id / "data" / "main_data.hdf5"


def _raw(space: gym.Space[Any], steps: int, seed: int = 0) -> tuple[list[Any], Any]:
    """Observations of a composite space, one by one and as Minari keeps them."""
    space.seed(seed)
    samples = [space.sample() for _ in range(steps + 1)]

    def stack(part: gym.Space[Any], values: list[Any]) -> Any:
        if isinstance(part, gym.spaces.Dict):
            return {key: stack(sub, [value[key] for value in values]) for key, sub in part.spaces.items()}
        if isinstance(part, gym.spaces.Tuple):
            return tuple(stack(sub, [value[i] for value in values]) for i, sub in enumerate(part.spaces))
        return np.stack(values)

    return samples, stack(space, samples)


def test_round_trip(make_trajectories: Any) -> None:
    trajectories = make_trajectories()
    _write(trajectories, ref_min_score=-5.0, ref_max_score=7.0, requirements=["gymnasium>=1"])
    found, info = minari_io.read("toy/test-v0")
    assert len(found) == len(trajectories)
    for one, two in zip(found, trajectories, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.rewards, two.rewards)
        assert one.terminated == two.terminated
    assert info.source == "minari:toy/test-v0"
    assert info.observation_space == BOX and info.action_space == ACTIONS
    assert info.env_spec is not None and info.env_spec.id == "Pendulum-v1"
    json.dumps(info.metadata)
    assert info.metadata["author"] == ["tests"] and info.metadata["ref_max_score"] == 7.0
    assert info.metadata["environment"] == "Pendulum-v1" and info.metadata["requirements"] == ["gymnasium>=1"]


@pytest.mark.parametrize("last", [False, True])
def test_the_last_step_says_whether_the_episode_ended(make_trajectories: Any, last: bool) -> None:
    """Continuing tasks mark goals on the way; what ends an episode there is its time limit."""
    _write(make_trajectories(lengths=(4, 4)))
    with h5py.File(_file(), "a") as data:
        data["episode_1/terminations"][...] = [False, True, False, last]
        data["episode_1/truncations"][...] = [False, False, False, not last]
    found, _ = minari_io.read("toy/test-v0")
    assert len(found[1]) == 4 and found[1].terminated is last


def test_minari_reads_what_is_written(make_trajectories: Any) -> None:
    trajectories = make_trajectories()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _write(trajectories)
        dataset = minari.load_dataset("toy/test-v0")
        listed = minari.list_local_datasets()
    assert list(listed) == ["toy/test-v0"] and minari.namespace.list_local_namespaces() == ["toy"]
    assert dataset.total_episodes == len(trajectories)
    assert dataset.total_steps == sum(map(len, trajectories))
    for episode, expected in zip(dataset.iterate_episodes(), trajectories, strict=True):
        np.testing.assert_array_equal(episode.observations, expected.observations)
        assert episode.terminations[-1] == expected.terminated != episode.truncations[-1]
        assert not episode.terminations[:-1].any() and not episode.truncations[:-1].any()
    env = dataset.recover_environment()
    assert env.spec is not None and env.spec.id == "Pendulum-v1"


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Dict({"z": gym.spaces.Box(-1, 1, (2, 2)), "a": gym.spaces.Box(0, 9, (3,), np.float64)}),
        gym.spaces.Dict(OrderedDict(z=gym.spaces.Box(-1, 1, (2,)), a=gym.spaces.Box(0, 9, (1,)))),
        gym.spaces.Dict(
            {"b": gym.spaces.Dict({"c": gym.spaces.Discrete(3, start=2)}), "a": gym.spaces.MultiBinary(4)}
        ),
        gym.spaces.Tuple([gym.spaces.Box(-1, 1, (2,)), gym.spaces.MultiDiscrete([2, 5])]),
        gym.spaces.Discrete(6, start=-1),
        gym.spaces.MultiDiscrete([3, 2], start=[1, 0]),
        gym.spaces.MultiBinary((2, 2)),
        gym.spaces.Box(-1, 1, (2, 3), np.float64),
        pytest.param(gym.spaces.Box(0, 9, (7, 7, 3), np.uint8), marks=writes_bytes),
    ],
    ids=["sorted", "unsorted", "nested", "tuple", "discrete", "multi", "binary", "matrix", "grid"],
)
def test_composite_observations_are_flattened_as_gymnasium_does(space: gym.Space[Any]) -> None:
    samples, stacked = _raw(space, 5)
    episode = RawEpisode(stacked, np.zeros((5, 2), np.float32), np.arange(5.0), terminated=False)
    _write([episode], observation_space=space)
    (found,), info = minari_io.read("toy/test-v0")
    expected = np.stack([flatten(space, sample) for sample in samples]).astype(np.float32)
    np.testing.assert_array_equal(found.observations, expected)
    assert found.observations.dtype == np.float32 and found.rewards.dtype == np.float32
    assert info.observation_space.shape == expected.shape[1:]
    assert info.observation_space.contains(found.observations[0])
    assert info.recorded_space == space
    again = DatasetInfo.from_json(json.loads(json.dumps(info.to_json(), allow_nan=False)))
    assert again.recorded_space == space and again == info


def test_a_text_beside_numbers_is_left_out_with_a_note() -> None:
    space = gym.spaces.Dict({"mission": gym.spaces.Text(9), "at": gym.spaces.Box(-1, 1, (2,))})
    samples, stacked = _raw(gym.spaces.Dict({"at": space["at"]}), 3)
    observations = {"mission": ["go", "to", "the", "door"], **stacked}
    _write(
        [RawEpisode(observations, np.zeros((3, 2), np.float32), np.ones(3), terminated=True)],
        observation_space=space,
    )
    (found,), info = minari_io.read("toy/test-v0")
    np.testing.assert_array_equal(found.observations, [sample["at"] for sample in samples])
    assert info.metadata["notes"] == ["the part mission (Text) of observations is left out: it is no numbers"]
    again = DatasetInfo.from_json(json.loads(json.dumps(info.to_json())))
    assert again.recorded_space is not None and list(again.recorded_space) == ["at", "mission"]


@pytest.mark.parametrize("shape", [(7, 1), (7, 1, 1)])
def test_rewards_in_a_column_are_one_number_a_step(make_trajectories: Any, shape: tuple[int, ...]) -> None:
    (expected,) = make_trajectories(lengths=(7,))
    _write([expected])
    with h5py.File(_file(), "a") as data:
        del data["episode_0/rewards"]
        data["episode_0/rewards"] = expected.rewards.reshape(shape)
    (found,), _ = minari_io.read("toy/test-v0")
    np.testing.assert_array_equal(found.rewards, expected.rewards)
    assert found.rewards.shape == (7,)


def test_empty_episodes_are_left_out(make_trajectories: Any) -> None:
    _write(make_trajectories(lengths=(3, 7, 5)))
    with h5py.File(_file(), "a") as data:
        for key, shape in {
            "rewards": (0,),
            "actions": (0, 2),
            "terminations": (0,),
            "observations": (1, 3),
        }.items():
            del data[f"episode_1/{key}"]
            data[f"episode_1/{key}"] = np.zeros(shape)
    found, info = minari_io.read("toy/test-v0")
    assert [len(episode) for episode in found] == [3, 5]
    assert "1 of 3 episodes are left out: 1 x a trajectory has no steps" in info.metadata["notes"][0]


def test_double_precision_that_float32_cannot_hold_is_named(make_trajectories: Any) -> None:
    space = gym.spaces.Dict({"clock": gym.spaces.Box(0, np.inf, (2,), np.float64)})
    rng = np.random.default_rng(0)
    stamps = np.stack([1.7e9 + rng.normal(size=8), 3 + rng.normal(size=8)], axis=1)
    episode = RawEpisode({"clock": stamps}, np.zeros((7, 2), np.float32), np.ones(7), terminated=True)
    _write([episode], observation_space=space)
    (note,) = minari_io.read("toy/test-v0")[1].metadata["notes"]
    assert note.startswith("clock[0] of observations varies by ") and "around 17000000" in note
    assert note.endswith("subtract an offset from it in the data and in the environment")


def test_multi_discrete_actions_are_kept(make_trajectories: Any) -> None:
    space = gym.spaces.MultiDiscrete([3, 2], start=[5, 0])
    actions = np.array([[5, 0], [7, 1], [6, 1]])
    (trajectory,) = make_trajectories(lengths=(3,))
    _write([replace(trajectory, actions=actions)], action_space=space)
    (found,), info = minari_io.read("toy/test-v0")
    assert found.actions.dtype == np.int64
    np.testing.assert_array_equal(found.actions, actions)
    store = TrajectoryStore.from_trajectories([found], info)
    np.testing.assert_array_equal(store.actions, actions)
    again = DatasetInfo.from_json(json.loads(json.dumps(info.to_json())))
    assert again.action_space == space
    with pytest.raises(UserError, match=r"the space allows \[5 0\] to \[7 1\]"):
        TrajectoryStore.from_trajectories([replace(found, actions=actions + 1)], info)


def test_links_out_of_the_file_are_not_followed(make_trajectories: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["numbers"] = np.zeros(3)
    for name in ("observations", "rewards"):
        _write(make_trajectories(lengths=(3, 3)), overwrite=True)
        with h5py.File(_file(), "a") as data:
            if name in data["episode_1"]:
                del data[f"episode_1/{name}"]
            data[f"episode_1/{name}"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/numbers")
        with pytest.raises(UserError, match="lies in another file"):
            minari_io.read("toy/test-v0")


def test_bytes_that_minari_would_change_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_an_older_minari(path: Path, observation_space: Any = None, action_space: Any = None) -> None: ...

    monkeypatch.setattr(minari_io.MinariStorage, "new", of_an_older_minari)
    space = gym.spaces.Dict({"a": BOX, "b": gym.spaces.Box(0, 255, (4,), np.uint8)})
    with pytest.raises(UserError, match=r"writes bytes as JPEG.*minari>=0.5.4.*Python 3.11"):
        _write([], observation_space=space)


@writes_bytes
def test_images_stay_bytes_and_exact() -> None:
    space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    image = np.random.default_rng(0).integers(0, 255, (4, 36, 36, 3), dtype=np.uint8)
    _write([Trajectory(image, np.zeros((3, 2)), np.ones(3), terminated=True)], observation_space=space)
    (found,), _ = minari_io.read("toy/test-v0")
    np.testing.assert_array_equal(found.observations, image)


def test_jpeg_images_are_decoded() -> None:
    space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "jpeg-v0",
            [
                minari.data_collector.EpisodeBuffer(
                    observations=np.full((4, 36, 36, 3), 100, np.uint8),
                    actions=np.zeros((3, 2), np.float32),
                    rewards=np.ones(3),
                    terminations=np.array([False, False, True]),
                    truncations=np.zeros(3, bool),
                    infos={},
                )
            ],
            observation_space=space,
            action_space=ACTIONS,
        )
    (found,), info = minari_io.read("jpeg-v0")
    assert found.observations.dtype == np.uint8 and np.abs(found.observations.astype(int) - 100).max() <= 2
    assert info.env_spec is None and "environment" not in info.metadata


def test_discrete_actions_keep_the_environments_numbers(make_trajectories: Any) -> None:
    trajectories = make_trajectories(actions=3, first_action=5)
    _write(trajectories, action_space=gym.spaces.Discrete(3, start=5))
    found, info = minari_io.read("toy/test-v0")
    np.testing.assert_array_equal(found[4].actions, trajectories[4].actions)
    assert found[4].actions.min() >= 5 and found[4].actions.dtype == np.int64
    assert info.action_space == gym.spaces.Discrete(3, start=5)


def test_old_specifications_are_read(make_trajectories: Any) -> None:
    _write(make_trajectories())
    path = _file().with_name("metadata.json")
    raw = json.loads(path.read_text())
    spec = json.loads(raw["env_spec"]) | {"apply_api_compatibility": False, "autoreset": False}
    path.write_text(json.dumps({**raw, "env_spec": json.dumps(spec)}))
    assert minari_io.read("toy/test-v0")[1].env_spec is not None
    path.write_text(json.dumps({**raw, "env_spec": "no JSON"}))
    assert minari_io.read("toy/test-v0")[1].env_spec is None


def test_scores_that_are_no_numbers_are_unknown(make_trajectories: Any) -> None:
    _write(make_trajectories())
    path = _file().with_name("metadata.json")
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "ref_min_score": float("nan"), "ref_max_score": float("inf")}))
    _, info = minari_io.read("toy/test-v0")
    assert info.metadata["ref_min_score"] is None
    json.dumps(info.to_json(), allow_nan=False)


def test_recorded_environments_are_as_they_can_be_made(make_trajectories: Any) -> None:
    _write(make_trajectories())
    path = _file().with_name("metadata.json")
    raw = json.loads(path.read_text())

    def read(**changes: Any) -> DatasetInfo:
        recorded = {**json.loads(raw["env_spec"]), **changes}
        other = {**recorded, "max_episode_steps": 77}
        path.write_text(
            json.dumps({**raw, "env_spec": json.dumps(recorded), "eval_env_spec": json.dumps(other)})
        )
        return minari_io.read("toy/test-v0")[1]

    info = read(kwargs={"render_mode": "human", "g": 9.0}, max_episode_steps=1000000.0)
    assert info.env_spec is not None and info.env_spec.kwargs == {"g": 9.0}
    assert info.env_spec.max_episode_steps == 77
    info = read(max_episode_steps=50.0)
    assert info.environment is not None and info.environment.evaluation is not None
    assert (info.environment.max_episode_steps, info.environment.evaluation.max_episode_steps) == (50, 77)
    path.write_text(
        json.dumps({**raw, "env_spec": json.dumps({**json.loads(raw["env_spec"]), "max_episode_steps": 1e6})})
    )
    info = minari_io.read("toy/test-v0")[1]
    assert info.env_spec is not None and info.env_spec.max_episode_steps == 200, "the registered one"


def test_missing_data_set_names_the_nearest_and_the_remedy(make_trajectories: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no data set.*rayrl-dt data make"):
        minari_io.read("toy/test-v0")
    _write(make_trajectories())
    for download in (False, True):
        with pytest.raises(UserError) as caught:
            minari_io.read("toy/tset-v0", download=download)
        message = str(caught.value)
        assert "'toy/tset-v0'" in message and str(tmp_path / "minari") in message
        assert "Did you mean 'toy/test-v0'?" in message and "rayrl-dt data make" in message
        assert "\n" not in message
        assert ("downloading it failed" in message) == download


def test_unknown_remote_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(dataset_id: str) -> None:
        raise ValueError(f"Couldn't find any version for dataset {dataset_id}\nmore")

    monkeypatch.setenv("MINARI_REMOTE", "gcp://nowhere")
    monkeypatch.setattr(minari, "download_dataset", unknown)
    with pytest.raises(
        UserError, match=r"failed \(ValueError: Couldn't find any version for dataset ab/c-v0\)"
    ):
        minari_io.read("ab/c-v0", download=True)


def test_downloading(make_trajectories: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fetch(dataset_id: str) -> None:
        print("Downloading ...")
        _write(make_trajectories(), dataset_id)

    monkeypatch.setenv("MINARI_REMOTE", "gcp://somewhere")
    monkeypatch.setattr(minari, "download_dataset", fetch)
    assert len(minari_io.read("ab/c-v0", download=True)[0]) == 5
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "damage", ["truncated", "text", "file", "episode", "key", "metadata", "metadata file"]
)
def test_damaged_data_set(make_trajectories: Any, damage: str) -> None:
    _write(make_trajectories(lengths=(300, 300)))
    file, metadata = _file(), _file().with_name("metadata.json")
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "text":
        file.write_text("no HDF5")
    elif damage == "file":
        file.unlink()
    elif damage == "metadata":
        metadata.write_text("{")
    elif damage == "metadata file":
        metadata.unlink()
    else:
        with h5py.File(file, "a") as data:
            del data["episode_1" if damage == "episode" else "episode_1/rewards"]
    with pytest.raises(
        UserError, match=r"is damaged .*toy/test-v0|toy/test-v0.* is damaged .*delete it"
    ) as caught:
        minari_io.read("toy/test-v0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "values", "why"),
    [
        ("observations", np.full((8, 3), np.nan), "NaN or infinite observations"),
        ("rewards", np.full(7, np.inf), "NaN or infinite rewards"),
        ("observations", np.zeros((7, 3)), "7 observations, 7 actions and 7 rewards"),
        ("observations", np.zeros((8, 4)), "observations have shape"),
        ("actions", np.zeros((7, 5)), "actions have shape"),
        ("actions", np.zeros((0, 2)), "8 observations, 0 actions and 7 rewards"),
        ("observations", np.array([b"text"] * 8), "not numbers"),
    ],
)
def test_bad_episodes_are_left_out_up_to_half_of_them(
    make_trajectories: Any, key: str, values: Any, why: str
) -> None:
    good = make_trajectories(lengths=(3, 7))
    _write(good)
    with h5py.File(_file(), "a") as data:
        del data[f"episode_1/{key}"]
        data[f"episode_1/{key}"] = values
    (found,), info = minari_io.read("toy/test-v0")
    np.testing.assert_array_equal(found.observations, good[0].observations)
    (note,) = info.metadata["notes"]
    assert note.startswith("1 of 2 episodes are left out: 1 x ")
    assert re.search(re.sub(r"\d", "N", why), note)
    with h5py.File(_file(), "a") as data:
        data["episode_0/rewards"][:] = np.nan
    with pytest.raises(
        UserError, match=r"2 of 2 episodes of minari:toy/test-v0 are bad; .*episode_0: "
    ) as caught:
        minari_io.read("toy/test-v0")
    assert "\n" not in str(caught.value)


def test_bad_episodes_are_not_written(make_trajectories: Any) -> None:
    good = make_trajectories()
    with pytest.raises(UserError, match=r"episode 1: actions have shape \(5,\)"):
        _write([good[0], *make_trajectories(action_dim=5)])
    with pytest.raises(UserError, match="whole numbers from 0 to 2"):
        _write(make_trajectories(actions=9), action_space=gym.spaces.Discrete(3))
    with pytest.raises(UserError, match="no episodes"):
        _write([])
    with pytest.raises(UserError, match="both ref_min_score and ref_max_score"):
        _write(good, ref_max_score=1.0)
    for dataset_id in ("no-version", "/abs-v0", "../up-v0", "a b-v0"):
        with pytest.raises(UserError, match="is not a Minari data set id"):
            _write(good, dataset_id)
    assert minari_io.list_local() == []
    assert not minari_io.exists("toy/test-v0")


def test_unsupported_spaces(make_trajectories: Any) -> None:
    space = gym.spaces.Dict({"a": gym.spaces.Text(5)})
    with pytest.raises(UserError):
        _write(make_trajectories(), observation_space=space)
    _write(make_trajectories())
    path = _file().with_name("metadata.json")
    raw = json.loads(path.read_text())
    parts = [{"type": "Discrete", "dtype": "int64", "n": 2, "start": 0}]
    several = json.dumps({"type": "Tuple", "subspaces": parts})
    path.write_text(json.dumps({**raw, "action_space": several}))
    with pytest.raises(UserError, match=r"action space Tuple.* is not supported"):
        minari_io.read("toy/test-v0")


def test_existing_data_set_is_kept_unless_overwritten(make_trajectories: Any) -> None:
    _write(make_trajectories())
    with pytest.raises(UserError, match=r"exists in .*choose another id or overwrite it"):
        _write(make_trajectories(lengths=(4,)))
    assert len(minari_io.read("toy/test-v0")[0]) == 5

    def failing() -> Any:
        yield make_trajectories()[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _write(failing(), overwrite=True)
    assert len(minari_io.read("toy/test-v0")[0]) == 5
    _write(make_trajectories(lengths=(4,)), overwrite=True)
    assert len(minari_io.read("toy/test-v0")[0]) == 1
    assert [path.name for path in (minari_io.datasets_root() / "toy").iterdir() if path.is_dir()] == [
        "test-v0"
    ]


def test_list_local(make_trajectories: Any) -> None:
    assert minari_io.list_local() == []
    _write(make_trajectories(), "b/deep/er-v1")
    _write(make_trajectories(lengths=(4,)), "a-v0", env_spec=None)
    for number, odd in enumerate(
        ("", "[]", "3", "{", '{"total_episodes": null}', '{"env_spec": [1]}', "[" * 9999)
    ):
        folder = minari_io.datasets_root() / f"broken-v{number}" / "data"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(odd)
    first, second = minari_io.list_local()
    assert first["id"] == "a-v0" and first["episodes"] == 1 and first["steps"] == 4 and first["env"] is None
    assert second["id"] == "b/deep/er-v1" and second["env"] == "Pendulum-v1" and second["author"] == "tests"
    assert second["size_mb"] > 0
    assert minari_io.exists("a-v0") and not minari_io.exists("missing-v0")
