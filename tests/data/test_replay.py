"""The replay: whole trajectories, the order in which they leave, and what sampling sees of them.

The same tests for its three places: memory, mapped files, and a Ray actor.
"""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrl_dt.algorithms.offline_data import Sampling
from rayrl_dt.algorithms.online.shared_replay import ReplayIterator, SharedReplay
from rayrl_dt.data import windows
from rayrl_dt.data.replay import TrajectoryReplay, best_episodes
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.types import Trajectory

MakeStore = Callable[..., TrajectoryStore]
LENGTHS = (4, 9, 1, 30, 7, 12, 3, 30)


@pytest.fixture
def store(make_store: MakeStore) -> TrajectoryStore:
    return make_store(lengths=LENGTHS)


MakeReplay = Callable[..., Any]


def make_replay(kind: str, store: TrajectoryStore, capacity: int, **options: Any) -> Any:
    arguments = {"info": store.info, "normalizer": store.normalizer, "capacity": capacity, **options}
    if kind == "shared":
        return SharedReplay(arguments)
    return TrajectoryReplay(**arguments, memory_bytes=0 if kind == "mapped" else None)


@pytest.fixture(params=["memory", "mapped"])
def replay_for(request: pytest.FixtureRequest) -> MakeReplay:
    """Returns a function that makes an empty replay in this process."""
    return partial(make_replay, request.param)


@pytest.fixture(params=["memory", "mapped", pytest.param("shared", marks=pytest.mark.ray)])
def any_replay_for(request: pytest.FixtureRequest) -> Iterator[MakeReplay]:
    """Returns a function that makes an empty replay; each shared one costs the start of a process."""
    if request.param == "shared":
        request.getfixturevalue("ray_session")
    made = []

    def make(*arguments: Any, **options: Any) -> Any:
        made.append(make_replay(request.param, *arguments, **options))
        return made[-1]

    yield make
    for replay in made:
        if isinstance(replay, SharedReplay):
            replay.stop()


def collected(number: int, length: int, *, seed: int = 0) -> Trajectory:
    """An episode whose rewards all equal its number."""
    rng = np.random.default_rng([seed, number])
    return Trajectory(
        rng.normal(size=(length + 1, 3)).astype(np.float32),
        rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        np.full(length, number, np.float32),
        terminated=number % 2 == 0,
    )


def test_it_starts_with_the_best_logged_episodes_in_ascending_order(
    replay_for: MakeReplay, store: TrajectoryStore
) -> None:
    replay = replay_for(store, 5)
    replay.fill(store)
    expected = np.sort(store.episode_returns)[-5:]
    np.testing.assert_array_equal(replay.store.episode_returns, expected)
    np.testing.assert_array_equal(store.episode_returns[best_episodes(store, 5)], expected)
    assert len(best_episodes(store, 0)) == 0 and len(best_episodes(store, 99)) == len(LENGTHS)


def test_logged_episodes_leave_first_the_lowest_then_the_oldest_collected(
    any_replay_for: MakeReplay, store: TrajectoryStore
) -> None:
    replay = any_replay_for(store, 3)
    replay.fill(store)
    logged = np.sort(store.episode_returns)[-3:].tolist()
    for number in range(1, 7):
        replay.add([collected(number, 5)])
        left = [*logged, *(5.0 * n for n in range(1, number + 1))][-3:]
        assert replay.store.episode_returns.tolist() == left
    assert replay.numbers().tolist() == [6, 7, 8]


def test_what_went_in_is_what_is_there(any_replay_for: MakeReplay, store: TrajectoryStore) -> None:
    replay = any_replay_for(store, 50)
    episodes = [collected(number, 1 + number * 7 % 40) for number in range(30)]
    replay.add(episodes)
    for number, episode in enumerate(episodes):
        found = replay.store.trajectory(number)
        np.testing.assert_array_equal(found.observations, episode.observations)
        np.testing.assert_array_equal(found.actions, episode.actions)
        np.testing.assert_array_equal(found.rewards, episode.rewards)
        assert found.terminated == episode.terminated


def test_returns_are_those_achieved(replay_for: MakeReplay, store: TrajectoryStore) -> None:
    replay = replay_for(store, 4)
    replay.add([collected(2, 6), collected(3, 4)])
    np.testing.assert_allclose(replay.store.returns_to_go, [12, 10, 8, 6, 4, 2, 12, 9, 6, 3])


def test_growth_compaction_and_eviction_keep_every_byte(
    replay_for: MakeReplay, store: TrajectoryStore
) -> None:
    """Against the plain list that it stands for, through thousands of steps."""
    replay, plain = replay_for(store, 11, capacity_steps=300), []
    rng = np.random.default_rng(0)
    for number in range(400):
        episode = collected(number, int(rng.integers(1, 80)))
        replay.add([episode])
        plain.append(episode)
        while len(plain) > 11 or (sum(map(len, plain)) > 300 and len(plain) > 1):
            plain.pop(0)
        if number % 37 == 0:
            content = replay.store
            assert content.lengths.tolist() == [len(item) for item in plain]
            np.testing.assert_array_equal(content.rewards, np.concatenate([item.rewards for item in plain]))
            np.testing.assert_array_equal(
                content.observations, np.concatenate([item.observations[:-1] for item in plain])
            )
            np.testing.assert_array_equal(
                content.final_observations, np.stack([item.observations[-1] for item in plain])
            )
    counts = replay.counts
    assert counts.added_episodes == 400 and counts.added_episodes - counts.evicted_episodes == len(replay)
    assert counts.added_steps - counts.evicted_steps == replay.num_steps == sum(map(len, plain))
    if isinstance(replay, TrajectoryReplay):
        assert len(replay._steps["rewards"]) <= 4 * 380, "dead rows are reclaimed"


def test_an_older_view_is_not_written_to(replay_for: MakeReplay, store: TrajectoryStore) -> None:
    replay = replay_for(store, 2)
    replay.add([collected(1, 600), collected(2, 600)])
    before = replay.store
    rewards = before.rewards.copy()
    replay.add([collected(number, 900) for number in range(3, 9)])
    np.testing.assert_array_equal(before.rewards, rewards)


def test_sampling_is_by_the_same_windows(replay_for: MakeReplay, store: TrajectoryStore) -> None:
    replay = replay_for(store, len(LENGTHS))
    replay.add([store.trajectory(episode) for episode in range(len(LENGTHS))])
    ours = windows.sample(replay.store, np.random.default_rng(3), 64, 5, successors=True)
    theirs = windows.sample(store, np.random.default_rng(3), 64, 5, successors=True)
    for one, other in ((ours, theirs), (ours.next, theirs.next)):
        for name in ("returns_to_go", "observations", "actions", "timesteps", "mask"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name))


def test_a_saved_replay_goes_on_as_if_never_stopped(
    any_replay_for: MakeReplay, store: TrajectoryStore
) -> None:
    replay = any_replay_for(store, 5, capacity_steps=60)
    replay.fill(store)
    replay.add([collected(number, 10) for number in range(3)])
    saved = pickle.loads(pickle.dumps(replay.state()))
    other = any_replay_for(store, 5, capacity_steps=60)
    other.restore(saved)
    for item in (replay, other):
        item.add([collected(number, 12) for number in range(3, 9)])
    assert replay.counts == other.counts
    np.testing.assert_array_equal(replay.numbers(), other.numbers())
    drawn = [windows.sample(item.store, np.random.default_rng(1), 32, 4) for item in (replay, other)]
    for name, value in drawn[0].to_dict().items():
        np.testing.assert_array_equal(value, drawn[1].to_dict()[name])


def test_a_smaller_capacity_on_restore_drops_the_oldest(
    replay_for: MakeReplay, store: TrajectoryStore
) -> None:
    replay = replay_for(store, 9)
    replay.add([collected(number, 10) for number in range(9)])
    smaller = replay_for(store, 4)
    smaller.restore(replay.state())
    assert smaller.numbers().tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(("capacity_steps", "kept"), [(30, 1), (42, 2), (10**6, 8), (1, 1)])
def test_filling_respects_the_bound_on_steps(
    replay_for: MakeReplay, store: TrajectoryStore, capacity_steps: int, kept: int
) -> None:
    order = np.argsort(store.episode_returns)
    replay = replay_for(store, 99, capacity_steps=capacity_steps)
    replay.fill(store)
    best = store.episode_returns[order]
    assert replay.store.episode_returns[-1] == best[-1]
    if capacity_steps > 30:
        assert replay.num_steps <= capacity_steps
    assert len(replay) >= kept or capacity_steps == 42


def test_bad_input(any_replay_for: MakeReplay, store: TrajectoryStore) -> None:
    with pytest.raises(UserError, match="capacity is 0 trajectories"):
        any_replay_for(store, 0)
    with pytest.raises(UserError, match="capacity is 0 steps"):
        any_replay_for(store, 1, capacity_steps=0)
    replay = any_replay_for(store, 3)
    with pytest.raises(UserError, match="replay is empty"):
        replay.store.num_steps  # noqa: B018
    wrong = Trajectory(
        np.zeros((3, 5), np.float32), np.zeros((2, 2), np.float32), np.zeros(2, np.float32), terminated=True
    )
    with pytest.raises(UserError, match="shape"):
        replay.add([collected(1, 4), wrong])
    assert len(replay) == 1


def test_a_replay_is_saved_and_loaded(
    any_replay_for: MakeReplay, store: TrajectoryStore, tmp_path: Path
) -> None:
    replay = any_replay_for(store, 5)
    replay.fill(store)
    replay.add([collected(number, 10) for number in range(3)])
    replay.save(tmp_path / "replay.npz")
    other = any_replay_for(store, 5)
    other.load(tmp_path / "replay.npz")
    assert other.counts == replay.counts and len(other) == 5 and other.num_steps == replay.num_steps
    np.testing.assert_array_equal(other.store.observations, replay.store.observations)
    assert [file.name for file in tmp_path.iterdir()] == ["replay.npz"]
    broken = tmp_path / "replay.npz"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(UserError, match="missing or broken"):
        other.load(broken)
    assert len(other) == 5, "what was there stays"


def test_replays_that_do_not_fit_are_refused(
    replay_for: MakeReplay, make_store: Any, store: TrajectoryStore, tmp_path: Path
) -> None:
    def damaged(name: str, **changes: Any) -> Path:
        path = tmp_path / name
        with np.load(saved) as content:
            np.savez(path, **{**content, **changes})
        return path

    replay = replay_for(store, 5)
    replay.fill(store)
    saved = tmp_path / "replay.npz"
    replay.save(saved)
    other = replay_for(make_store(observation_dim=7), 5)
    with np.load(saved) as content:
        packed = tmp_path / "packed.npz"
        np.savez_compressed(packed, **content)
        lengths = content["episodes/lengths"]
    content = bytearray(saved.read_bytes())
    place = content.rindex(b"PK\x01\x02")  # of the last entry of the list of members
    content[place + 6] = 109
    (tmp_path / "version.npz").write_bytes(content)
    content[place + 6], content[place + 8] = 20, 1
    (tmp_path / "encrypted.npz").write_bytes(content)
    for file, into, why in (
        (tmp_path / "version.npz", replay, r"missing or broken \(zip file version 10\.9\)"),
        (tmp_path / "encrypted.npz", replay, r"missing or broken \(.*encrypted"),
        (saved, other, r"observations are float32 of shape \(\d+, 3\), not numbers of shape \(\d+, 7\)"),
        (damaged("a.npz", **{"episodes/lengths": lengths + 1}), replay, "do not add up"),
        (damaged("b.npz", **{"steps/rewards": np.zeros(3)}), replay, "of shape"),
        (damaged("c.npz", **{"steps/more": np.zeros(lengths.sum())}), replay, "it holds"),
        (damaged("d.npz", counts=np.zeros(9)), replay, "missing or broken"),
        (packed, replay, "does not hold"),
        (tmp_path / "none.npz", replay, "missing or broken"),
    ):
        with pytest.raises(UserError, match=why) as caught:
            into.load(file)
        assert "\n" not in str(caught.value) and len(replay) == 5


def test_large_replays_are_mapped_from_files_without_a_name(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    replay = TrajectoryReplay(store.info, store.normalizer, capacity=100, memory_bytes=200_000)
    replay.add([collected(number, 50) for number in range(20)])
    assert not isinstance(replay._steps["rewards"], np.memmap)
    replay.add([collected(number, 1000) for number in range(20, 40)])
    assert isinstance(replay._steps["rewards"], np.memmap)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(replay.store.trajectory(30).observations, collected(30, 1000).observations)


def test_a_mapped_replay_is_saved_and_loaded_without_a_copy_in_memory(
    make_store: MakeStore, tmp_path: Path
) -> None:
    """The peak of what is allocated stays below a fraction of the content; mapped files do not count."""
    width = 2000
    store = make_store(lengths=(600,) * 8, observation_dim=width)
    content = store.observations.nbytes
    replays = [
        TrajectoryReplay(store.info, store.normalizer, capacity=8, memory_bytes=1 << 20) for _ in range(3)
    ]
    replays[0].fill(store)
    state = replays[0].state()
    peaks = []
    for step in (
        lambda: replays[0].save(tmp_path / "replay.npz"),
        lambda: replays[1].load(tmp_path / "replay.npz"),
        lambda: replays[2].restore(state),
    ):
        tracemalloc.start()
        step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Writing, NumPy takes 16 MiB at a time.
    assert peaks[0] < content / 2 and max(peaks[1:]) < content / 8
    for replay in replays[1:]:
        assert all(isinstance(array, np.memmap) for array in replay._steps.values())
        assert replay.counts == replays[0].counts
        np.testing.assert_array_equal(replay.numbers(), replays[0].numbers())
        for name in ("observations", "actions", "rewards", "returns_to_go", "final_observations", "lengths"):
            one, other = (getattr(item.store, name) for item in (replays[0], replay))
            np.testing.assert_array_equal(one, other)


def test_no_room_for_a_large_replay(
    store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system of 64 KiB, made by the limit on the size of files."""
    import resource
    import signal

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    replay = TrajectoryReplay(store.info, store.normalizer, capacity=100, memory_bytes=0)
    replay.add([collected(0, 50)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(UserError, match=r"no room for .* TMPDIR"):
            replay.add([collected(1, 20_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(replay) == 1
    np.testing.assert_array_equal(replay.store.trajectory(0).actions, collected(0, 50).actions)


@pytest.mark.ray
@pytest.mark.parametrize("ahead", [False, True])
def test_batches_of_a_shared_replay_are_those_of_one_in_this_process(
    ray_session: None, store: TrajectoryStore, ahead: bool
) -> None:
    arguments = {"info": store.info, "normalizer": store.normalizer, "capacity": 8}
    local, shared = TrajectoryReplay(**arguments), SharedReplay(arguments)
    for replay in (local, shared):
        replay.fill(store)
    sampling = Sampling(batch_size=16, context_length=4, seed=5, successors=True)
    source = ReplayIterator(shared.actor, sampling, ahead)
    # Two calls that follow each other, one that jumps back (a restored run), each longer than a request.
    for first, count in ((0, 7), (7, 25), (3, 12)):
        found = list(source.batches(rank=1, first_step=first, count=count))
        expected = list(sampling.batches(local.store, rank=1, first_step=first, count=count))
        assert len(found) == count
        for one, other in zip(found, expected, strict=True):
            for window, twin in ((one, other), (one.next, other.next)):
                for name in ("returns_to_go", "observations", "actions", "timesteps", "mask"):
                    np.testing.assert_array_equal(getattr(window, name), getattr(twin, name))
                    assert getattr(window, name).flags.writeable
    shared.stop()


@pytest.mark.ray
def test_a_dead_shared_replay_says_what_to_do(ray_session: None, store: TrajectoryStore) -> None:
    shared = SharedReplay({"info": store.info, "normalizer": store.normalizer, "capacity": 8})
    shared.fill(store)
    shared.stop()
    with pytest.raises(UserError, match=r"replay's process died.*--resume"):
        while True:  # Ray ends it when it gets to it
            shared.add([collected(1, 5)])
