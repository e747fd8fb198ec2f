from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rayrl_dt.data.readers import d4rl
from rayrl_dt.errors import UserError


def _arrays(trajectories: Any, *, unfinished: int = 2) -> dict[str, Any]:
    """D4RL's layout: the steps of all episodes, then the beginning of one that was cut off."""
    steps = [len(trajectory) for trajectory in trajectories]
    ends = np.cumsum(steps) - 1
    arrays = {
        "observations": np.concatenate([t.observations[:-1] for t in trajectories]),
        "next_observations": np.concatenate([t.observations[1:] for t in trajectories]),
        "actions": np.concatenate([t.actions for t in trajectories]),
        "rewards": np.concatenate([t.rewards for t in trajectories]),
        "terminals": np.zeros(sum(steps), bool),
        "timeouts": np.zeros(sum(steps), bool),
    }
    for end, trajectory in zip(ends, trajectories, strict=True):
        arrays["terminals" if trajectory.terminated else "timeouts"][end] = True
    return {
        name: np.concatenate([values, np.zeros((unfinished, *values.shape[1:]), values.dtype)])
        for name, values in arrays.items()
    }


def _write(path: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip")
        file["infos/qpos"] = np.zeros((len(arrays["rewards"]), 2))
        file["metadata/algorithm"] = "SAC"
    return path


def _assert_same(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.rewards, two.rewards)
        assert one.terminated == two.terminated


@pytest.mark.parametrize("block", [1, 10, 65_536])
def test_episodes_end_at_terminals_and_timeouts(
    make_trajectories: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(d4rl, "_BLOCK_STEPS", block)
    trajectories = make_trajectories(lengths=(5, 3, 1, 12, 4, 2))
    path = _write(tmp_path / "hopper_medium_replay-v2.hdf5", _arrays(trajectories))
    found, info = d4rl.read(path)
    _assert_same(found, trajectories)
    assert info.env_spec is None and info.source == f"d4rl:{path}"
    assert info.metadata["environment"] == "Hopper-v2"
    assert info.metadata["d4rl_id"] == "hopper-medium-replay-v2"
    assert info.metadata["final_observations"] == "recorded"
    assert info.metadata["notes"] == ["the last 2 of 29 steps are of an unfinished episode and are left out"]
    assert info.action_space.contains(np.ones(2, np.float32))
    assert info.observation_space.shape == (3,)


def test_last_observation_is_repeated_where_none_is_recorded(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories()
    arrays = _arrays(trajectories)
    del arrays["next_observations"]
    found, info = d4rl.read(_write(tmp_path / "mine.hdf5", arrays))
    for one, two in zip(found, trajectories, strict=True):
        np.testing.assert_array_equal(one.observations[:-1], two.observations[:-1])
        np.testing.assert_array_equal(one.observations[-1], two.observations[-2])
    assert info.metadata["final_observations"] == "repeated"
    assert "environment" not in info.metadata and "d4rl_id" not in info.metadata


def test_ends_without_timeouts_show_in_the_next_observations(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories()
    arrays = _arrays(trajectories)
    del arrays["timeouts"]
    _assert_same(d4rl.read(_write(tmp_path / "old.hdf5", arrays))[0], trajectories)


def test_steps_in_no_order_are_refused_where_no_timeouts_say_what_an_episode_is(
    make_trajectories: Any, tmp_path: Path
) -> None:
    arrays = _arrays(make_trajectories(), unfinished=0)
    del arrays["timeouts"]
    order = np.random.default_rng(0).permutation(len(arrays["rewards"]))
    shuffled = {name: values[order] for name, values in arrays.items()}
    with pytest.raises(
        UserError, match=r"mixed.hdf5: the steps are not in order, .* there are no timeouts; use"
    ):
        d4rl.read(_write(tmp_path / "mixed.hdf5", shuffled))


def test_terminals_alone_come_with_a_note(make_trajectories: Any, tmp_path: Path) -> None:
    arrays = _arrays(make_trajectories(lengths=(3, 4, 5)))  # the second one is truncated
    del arrays["timeouts"], arrays["next_observations"]
    found, info = d4rl.read(_write(tmp_path / "old.hdf5", arrays))
    assert [len(episode) for episode in found] == [3, 9]
    assert "split at terminal states only" in info.metadata["notes"][0]
    arrays["terminals"][:] = False
    with pytest.raises(UserError, match="no finished episode"):
        d4rl.read(_write(tmp_path / "none.hdf5", arrays))


def test_a_file_most_of_which_is_behind_the_last_end_comes_with_a_remedy(
    make_trajectories: Any, tmp_path: Path
) -> None:
    arrays = _arrays(make_trajectories(lengths=(3,)), unfinished=4)
    found, info = d4rl.read(_write(tmp_path / "old.hdf5", arrays))
    assert [len(episode) for episode in found] == [3]
    assert info.metadata["notes"] == [
        "the last 4 of 7 steps are of an unfinished episode and are left out; if episodes ended there, mark their "
        "last steps in timeouts"
    ]


def test_columns_and_doubles_are_accepted(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories()
    arrays = {name: values.astype(np.float64) for name, values in _arrays(trajectories).items()}
    arrays = {name: values[:, None] if values.ndim == 1 else values for name, values in arrays.items()}
    found, _ = d4rl.read(_write(tmp_path / "columns.hdf5", arrays))
    _assert_same(found, trajectories)
    assert found[0].observations.dtype == np.float32 and found[0].rewards.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "d4rl_id", "environment"),
    [
        ("hopper_mixed", "hopper-medium-replay-v0", "Hopper-v2"),
        ("halfcheetah-medium-expert-v2", "halfcheetah-medium-expert-v2", "HalfCheetah-v2"),
        ("ant_full_replay-v2", "ant-full-replay-v2", "Ant-v2"),
        ("walker2d_random-v1", "walker2d-random-v1", "Walker2d-v2"),
        ("Ant_maze_u-maze", None, None),
        ("hopper", None, None),
    ],
)
def test_published_names(
    make_trajectories: Any, tmp_path: Path, name: str, d4rl_id: str | None, environment: str | None
) -> None:
    _, info = d4rl.read(_write(tmp_path / f"{name}.hdf5", _arrays(make_trajectories())))
    assert info.metadata.get("d4rl_id") == d4rl_id and info.metadata.get("environment") == environment


def test_bad_files(make_trajectories: Any, tmp_path: Path) -> None:
    arrays = _arrays(make_trajectories())
    with pytest.raises(UserError, match="no file"):
        d4rl.read(tmp_path / "missing.hdf5")
    (tmp_path / "text.hdf5").write_text("hello")
    with pytest.raises(UserError, match=r"not an HDF5 file.*get it again"):
        d4rl.read(tmp_path / "text.hdf5")
    whole = _write(tmp_path / "whole.hdf5", arrays)
    os.truncate(whole, whole.stat().st_size // 2)
    with pytest.raises(UserError, match="truncated"):
        d4rl.read(whole)
    with pytest.raises(UserError, match="has no actions"):
        d4rl.read(_write(tmp_path / "a.hdf5", {k: v for k, v in arrays.items() if k != "actions"}))
    with pytest.raises(UserError, match="differ in length"):
        d4rl.read(_write(tmp_path / "b.hdf5", {**arrays, "actions": arrays["actions"][:-1]}))
    with pytest.raises(UserError, match="flatten them"):
        d4rl.read(_write(tmp_path / "c.hdf5", {**arrays, "observations": arrays["rewards"]}))
    with pytest.raises(UserError, match=r"100% of the actions lie up to 3 outside their bounds.*rescale"):
        d4rl.read(_write(tmp_path / "d.hdf5", {**arrays, "actions": np.full_like(arrays["actions"], 4)}))
    poisoned = {**arrays, "rewards": np.full_like(arrays["rewards"], np.nan)}
    with pytest.raises(UserError, match=r"e.hdf5, episode 0: .*NaN or infinite rewards"):
        d4rl.read(_write(tmp_path / "e.hdf5", poisoned))


def test_actions_a_little_outside_are_clipped(make_trajectories: Any, tmp_path: Path) -> None:
    arrays = _arrays(make_trajectories(), unfinished=0)
    arrays["actions"][0] = (1 + 2e-5, -1.5)
    found, info = d4rl.read(_write(tmp_path / "a.hdf5", arrays))
    np.testing.assert_array_equal(found[0].actions[0], [1, -1])
    assert info.metadata["notes"] == [
        "2 of 140 numbers of actions lie up to 0.5 outside their bounds and are clipped"
    ]


def test_seams_without_a_flag_end_an_episode(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories(lengths=(5, 8, 6, 9))
    arrays = _arrays(trajectories, unfinished=0)
    arrays["timeouts"][12] = False
    found, info = d4rl.read(_write(tmp_path / "glued.hdf5", arrays))
    _assert_same(found, trajectories)
    assert info.metadata["notes"] == ["episodes end where next_observations jump without a flag: 1 seams"]


def test_timeouts_that_come_one_step_late_are_put_right(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories(lengths=(5, 8, 6, 9))
    arrays = _arrays(trajectories, unfinished=3)
    arrays["timeouts"] = np.roll(arrays["timeouts"], 1)
    found, info = d4rl.read(_write(tmp_path / "late.hdf5", arrays))
    _assert_same(found, trajectories)
    note, _ = info.metadata["notes"]
    assert note == (
        "episodes end where next_observations jump without a flag: 2 seams, "
        "at 2 of which the flag comes one step late"
    )


def test_timeouts_that_come_one_step_early_are_put_right(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories(lengths=(5, 8, 6, 9, 2))
    arrays = _arrays(trajectories, unfinished=3)
    arrays["timeouts"] = np.roll(arrays["timeouts"], -1)
    found, info = d4rl.read(_write(tmp_path / "early.hdf5", arrays))
    _assert_same(found, trajectories)
    note, _ = info.metadata["notes"]
    assert note == (
        "episodes end where next_observations jump without a flag: 2 seams, "
        "at 2 of which the flag comes one step early"
    )


def test_rounding_is_no_seam(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories()
    arrays = _arrays(trajectories, unfinished=0)
    arrays["next_observations"] = arrays["next_observations"] * (1 + 1e-6)
    found, info = d4rl.read(_write(tmp_path / "rounded.hdf5", arrays))
    assert [len(episode) for episode in found] == [len(episode) for episode in trajectories]
    assert "notes" not in info.metadata


def test_next_observations_of_another_kind_are_no_seams(make_trajectories: Any, tmp_path: Path) -> None:
    trajectories = make_trajectories()
    arrays = _arrays(trajectories)
    arrays["next_observations"] = arrays["next_observations"] + 100
    found, info = d4rl.read(_write(tmp_path / "other.hdf5", arrays))
    assert [len(episode) for episode in found] == [len(episode) for episode in trajectories]
    assert "are not the observations of the next step" in info.metadata["notes"][0]


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("rewards", np.zeros((72, 2)), r"rewards are of shape \(72, 2\)"),
        ("terminals", np.array([b"no"] * 72), r"terminals is \|S2"),
        ("actions", np.float64(3), r"actions is float64 of shape \(\)"),
        ("next_observations", np.zeros((72, 5)), "next_observations of"),
        ("timeouts", np.zeros(7, bool), "differ in length"),
        ("actions", None, "actions is a group"),
        ("observations", h5py.SoftLink("/nowhere"), "observations leads nowhere"),
    ],
)
def test_arrays_of_other_shapes_and_kinds_are_refused(
    make_trajectories: Any, tmp_path: Path, name: str, values: Any, why: str
) -> None:
    path = _write(tmp_path / "odd.hdf5", _arrays(make_trajectories()))
    with h5py.File(path, "a") as file:
        del file[name]
        if values is None:
            file[f"{name}/deeper"] = np.zeros(3)
        else:
            file[name] = values
    with pytest.raises(UserError, match=why) as caught:
        d4rl.read(path)
    assert "\n" not in str(caught.value)


def test_links_out_of_the_file_are_not_followed(make_trajectories: Any, tmp_path: Path) -> None:
    arrays = _arrays(make_trajectories())
    other = _write(tmp_path / "other.hdf5", arrays)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(72 * 8))
    for kind in ("external", "soft", "storage", "virtual"):
        path = _write(tmp_path / f"{kind}.hdf5", arrays)
        with h5py.File(path, "a") as file:
            del file["rewards"]
            if kind == "external":
                file["rewards"] = h5py.ExternalLink(str(other), "/rewards")
            elif kind == "soft":
                file["out"] = h5py.ExternalLink(str(other), "/rewards")
                file["rewards"] = h5py.SoftLink("/out")
            elif kind == "storage":
                file.create_dataset("rewards", (72,), "f8", external=[(str(secret), 0, 72 * 8)])
            else:
                layout = h5py.VirtualLayout((72,), "f4")
                layout[:] = h5py.VirtualSource(str(other), "rewards", (72,))
                file.create_virtual_dataset("rewards", layout)
        with pytest.raises(UserError, match="rewards lies in another file"):
            d4rl.read(path)


def test_a_file_that_would_unpack_to_far_more_is_refused(make_trajectories: Any, tmp_path: Path) -> None:
    path = _write(tmp_path / "bomb.hdf5", _arrays(make_trajectories()))
    with h5py.File(path, "a") as file:
        for name in list(file):
            del file[name]
        for name in ("observations", "actions", "rewards", "terminals"):
            shape = (10**9, 3) if name in ("observations", "actions") else (10**9,)
            file.create_dataset(name, shape, "f4", chunks=True, compression="gzip")
    with pytest.raises(UserError, match=r"would unpack to 29.8 GiB from 0.0 MiB"):
        d4rl.read(path)
