"""Acting along data with Ray Data: the table holds what one process would have found; bad input is one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import build_model, store_for

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.deployment import along_data
from rayrl_dt.deployment.along_data import write_actions
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.serving.along import act_along

MakeStore = Callable[..., TrajectoryStore]
EPISODES, STEPS = 70, 6


def saved(folder: Path, store: TrajectoryStore, **config: Any) -> Path:
    """An untrained policy for the store's task, beside the store; returns the policy."""
    store.save(folder / "data")
    model = build_model(store, **config)
    return save_bundle(model.spec, model.state_dict(), folder / "policy")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return saved(tmp_path, store_for(gym.make("Pendulum-v1"), episodes=EPISODES, steps=STEPS))


def source(policy: Path) -> str:
    return f"store:{policy.parent / 'data'}"


@pytest.mark.ray
def test_the_table_is_what_one_process_finds(
    ray_session: None, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, seen = policy.parent / "new" / "actions.parquet", []
    found = write_actions(
        policy,
        out,
        targets="-3,400",
        dataset=source(policy),
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert "target 400 lies outside the data's returns" in caplog.text
    table = pq.read_table(out)
    assert seen[-1] == (2 * EPISODES * STEPS,) * 2 and [file.name for file in out.parent.iterdir()] == [
        out.name
    ]
    store = TrajectoryStore.open(policy.parent / "data")
    for number, (target, agreement) in enumerate(zip((-3.0, 400.0), found, strict=True)):
        along = act_along(Bundle.open(policy).model, store, np.arange(EPISODES), np.full(EPISODES, target))
        rows = table.slice(number * EPISODES * STEPS, EPISODES * STEPS).to_pydict()
        assert (rows["episode"], rows["step"]) == (along.episodes.tolist(), along.steps.tolist())
        assert set(rows["target_return"]) == {target}
        np.testing.assert_allclose(rows["return_to_go"], along.returns_to_go, atol=1e-5)
        np.testing.assert_allclose(rows["action"], along.actions, atol=1e-5)
        np.testing.assert_array_equal(rows["logged_action"], along.logged)
        assert (agreement.target, agreement.steps) == (target, EPISODES * STEPS)
        # Torques of Pendulum lie in [-2, 2].
        assert agreement.difference == pytest.approx(
            np.abs(along.actions - along.logged).mean() / 4, rel=1e-4
        )


@pytest.mark.ray
def test_each_episode_is_asked_for_its_own_return_and_choices_are_counted(
    ray_session: None, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(lengths=(5, 2, 8), actions=3, first_action=1)
    policy = saved(tmp_path, store)
    (found,) = write_actions(policy, tmp_path / "a.parquet", targets="achieved", dataset=source(policy))
    rows = pq.read_table(tmp_path / "a.parquet").to_pydict()
    np.testing.assert_allclose(rows["target_return"], np.repeat(store.episode_returns, store.lengths))
    np.testing.assert_allclose(rows["return_to_go"], store.returns_to_go, atol=1e-4)
    different = np.array(rows["action"]) != np.array(rows["logged_action"])
    assert found.target is None and found.difference == pytest.approx(different.mean())
    assert {*rows["action"]} <= {1, 2, 3}


@pytest.mark.ray
def test_a_worker_that_fails_is_one_line_and_leaves_the_older_file(
    ray_session: None, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = policy.parent / "actions.parquet"
    out.write_bytes(b"older")

    def failing(*_: Any, **__: Any) -> None:
        raise UserError("the weights are bad; use others")

    monkeypatch.setattr(along_data, "_act", failing)
    with pytest.raises(UserError, match="the weights are bad; use others"):
        write_actions(policy, out, dataset=source(policy))
    assert out.read_bytes() == b"older" and not list(policy.parent.glob(".actions*"))


@pytest.mark.ray
def test_the_part_of_a_killed_worker_is_done_again(
    ray_session: None, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, act = policy.parent / "killed", along_data._act

    def act_and_die(part: dict[str, Any], given: Any) -> Any:
        answer = act(part, given)
        if part["episodes"][0][0] > 0 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    tables = []
    for name, what in (("whole", act), ("lost", act_and_die)):
        monkeypatch.setattr(along_data, "_act", what)
        out = policy.parent / f"{name}.parquet"
        write_actions(policy, out, targets="-3,4", dataset=source(policy), workers=2)
        tables.append(pq.read_table(out))
    assert killed.exists() and tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "actions.csv"}, r"actions.csv must be a file that ends in .parquet"),
        ({"workers": 0}, r"--workers is 0"),
        ({"cpus": 0}, r"--cpus is 0"),
        ({"targets": "best"}, r"cannot read the targets 'best'"),
        ({"context_length": 99}, r"99"),
        ({"dataset": None}, r"name other data of the same task with --dataset"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(
    policy: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(along_data, "start_ray", lambda **_: pytest.fail("Ray was started"))
    given: dict[str, Any] = {"out": "a.parquet", "dataset": source(policy), **options}
    with pytest.raises(UserError, match=message):
        write_actions(policy, policy.parent / given.pop("out"), **given)


@pytest.mark.ray
def test_data_of_another_task_and_too_little_room_are_refused(
    ray_session: None, policy: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    make_store(observation_dim=5).save(tmp_path / "other")
    with pytest.raises(UserError, match="of another task than the policy"):
        write_actions(policy, tmp_path / "a.parquet", dataset=f"store:{tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"a worker needs 99 CPU.*; lower --cpus, or join a larger"):
        write_actions(policy, tmp_path / "a.parquet", dataset=source(policy), cpus=99)
