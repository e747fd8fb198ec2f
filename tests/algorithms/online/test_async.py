"""Asynchronous collection on real Ray actors: its two bounds, its counters, resuming, and everything that dies."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import ray
from gymnasium.envs.registration import EnvSpec
from ray.exceptions import ObjectLostError

from rayrl_dt import OnlineDT, OnlineDTConfig, UserError
from rayrl_dt.algorithms.online import shared_replay
from rayrl_dt.algorithms.online.collected import Collected
from rayrl_dt.algorithms.online.shared_replay import SharedReplay
from rayrl_dt.algorithms.runners import asynchronous as asynchronous_runners
from rayrl_dt.algorithms.runners import synchronous
from rayrl_dt.algorithms.runners.asynchronous import StreamResult
from rayrl_dt.algorithms.runners.timeouts import SilenceTimer
from rayrl_dt.evaluation.rollout import EpisodeRecord

pytestmark = pytest.mark.ray

Configure = Callable[..., Any]


@pytest.fixture
def asynchronous(ray_session: None, pendulum_data: str) -> Configure:
    """Returns a function that configures a short run: 4 updates, then 3 for each 200 steps of two runners."""

    def configure(*, runners: int = 2, slots: int = 2, env: Any = None, **settings: Any) -> Any:
        config = OnlineDTConfig()
        config.offline_data(dataset=pendulum_data)
        if env is not None:
            config.environment(env)
        config.rl_module(model_config={"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 1})
        config.training(gradient_steps_per_iteration=4, train_batch_size_per_learner=8, warmup_steps=6)
        config.evaluation(target_returns="dataset:3", episodes_per_target=2)
        config.env_runners(num_env_runners=runners, num_envs_per_env_runner=slots)
        config.fault_tolerance(restart_failed_env_runners=True)
        defaults = {
            "mode": "async",
            "pretrain_steps": 4,
            "env_steps": 1600,
            "env_steps_per_iteration": 200,
            "updates_per_iteration": 3,
            "replay_capacity_trajectories": 50,
        }
        return config.online(**{**defaults, **settings})

    return configure


def finish(algorithm: Any, each: Callable[[], None] = lambda: None) -> None:
    """Trains to the end, calling `each` after every iteration."""
    for _ in range(200):
        if algorithm.done:
            return
        algorithm.train()
        each()
    raise AssertionError("the run does not end")


def check_counters(algorithm: Any, *, logged: int, before: tuple[int, int] = (0, 0)) -> None:
    """What runners say they have brought is what the replay took in and what the algorithm counted."""
    totals = algorithm.async_runners.streams.values()
    assert (sum(each.episodes for each in totals), sum(each.steps for each in totals)) == (
        algorithm.collected_episodes - before[0],
        algorithm.env_steps - before[1],
    )
    counts = algorithm.replay.counts
    assert counts.added_episodes - logged == algorithm.collected_episodes
    numbers = algorithm.replay.numbers()
    assert len(set(numbers.tolist())) == len(numbers) == len(algorithm.replay)


def test_it_collects_while_it_learns_within_both_bounds(asynchronous: Configure) -> None:
    algorithm = asynchronous(max_policy_lag=2).build_algo()
    reports = []
    finish(algorithm, lambda: reports.append(algorithm.report()))
    online = [report for report in reports if report["phase"] == "online"]
    assert algorithm.gradient_steps == 4 + 8 * 3 == algorithm.config.total_gradient_steps
    assert algorithm.env_steps >= 1600
    for report in online:
        assert report["update_to_data"] <= 3 / 200
        assert report["policy_lag_max"] is None or 0 <= report["policy_lag_max"] <= 2
    assert any(report["policy_lag_max"] for report in online), "nothing was collected while learning"
    assert isinstance(algorithm.replay, SharedReplay)
    check_counters(algorithm, logged=8)
    # Weights have traveled: runners act with those of the learner, not with those that they began with.
    assert algorithm._policy[1] > 4
    result = algorithm.evaluate()["alignment"]
    assert len(result["targets"]) == 3
    algorithm.stop()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("least", "episodes"), [(1, 1), pytest.param(300, 2, marks=pytest.mark.long)])
def test_a_round_is_whole_episodes_in_both_modes(
    asynchronous: Configure, mode: str, least: int, episodes: int
) -> None:
    """Pendulum's episodes take 200 steps; four slots bring several at once, and each round has its updates."""
    algorithm = asynchronous(mode=mode, env_steps=700, env_steps_per_iteration=least).build_algo()
    finish(algorithm)
    rounds = 4 // episodes
    assert (algorithm.rounds, algorithm.gradient_steps) == (rounds, 4 + rounds * 3)
    assert algorithm.collected_episodes >= 4
    assert algorithm.config.total_gradient_steps <= 4 + 5 * 3, "the logged ones have 150 steps on average"
    algorithm.stop()


def test_episodes_go_on_from_call_to_call(asynchronous: Configure) -> None:
    """Pendulum's episodes take 200 steps, the calls 20: an episode spans ten of them, whatever weights came."""
    config = asynchronous(env_steps=800).env_runners(rollout_fragment_length=20)
    algorithm = config.build_algo()
    finish(algorithm)
    store = algorithm.replay.store
    assert set(store.lengths[8:].tolist()) == {200}
    assert algorithm.async_runners.calls > 2 * 10
    algorithm.stop()


def test_calls_of_many_runners_are_longer(asynchronous: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if two were many: calls that would end with each step take a tenth of a second."""
    monkeypatch.setattr(asynchronous_runners, "_LEAST_CALL_S_PER_RUNNER", 0.05)
    algorithm = asynchronous().env_runners(rollout_fragment_length=1).build_algo()
    begin = time.monotonic()
    finish(algorithm)
    passed = time.monotonic() - begin
    assert algorithm.env_steps >= 1600
    under_way = 2 * 2
    assert algorithm.stream_calls <= under_way + 2 * passed / 0.1
    assert algorithm.stream_calls < 1600 / 2, "two steps of environments in one of a runner"
    check_counters(algorithm, logged=8)
    algorithm.stop()


def test_what_is_collected_in_an_iteration_is_reported_as_a_whole() -> None:
    """The learner looks many times in an iteration, and then finds an episode or two."""
    algorithm = OnlineDT.__new__(OnlineDT)
    algorithm.__dict__ |= dict.fromkeys(
        ("gradient_steps", "env_steps", "rounds", "round_steps", "updates_due", "collected_episodes"), 0
    )
    sizes = {"pretrain_steps": 0, "env_steps": 9, "env_steps_per_iteration": 9, "updates_per_iteration": 1}
    algorithm.config = OnlineDTConfig().online(**sizes)
    algorithm._collected, algorithm._policy = Collected(), (None, 0)
    one, three = ([EpisodeRecord(100.0, value, 1) for value in values] for values in ([1.0], [5.0, 5.0, 9.0]))
    came = iter([[StreamResult(0, tuple(one), 1, 0, 0), StreamResult(0, tuple(three), 3, 0, 1)], []])
    algorithm.async_runners = Mock(calls=0, receive=lambda **how: next(came))
    for _ in range(2):
        algorithm._exchange(Mock(), timeout=0.0)
        assert (algorithm.collected_return, algorithm.asked_return, algorithm.env_steps) == (5.0, 100.0, 4)


def test_resuming_goes_on_with_the_same_content(asynchronous: Configure, tmp_path: Path) -> None:
    # More steps than the calls under way bring, however late the learner looks: the resumed run has some to collect.
    algorithm = asynchronous(env_steps=6400).build_algo()
    while algorithm.env_steps < 800:
        algorithm.train()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    before, content = algorithm.report(), algorithm.replay.state()
    counted, calls = (algorithm.collected_episodes, algorithm.env_steps), algorithm.stream_calls
    weights = algorithm.policy_state()
    algorithm.stop()
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "checkpoint"))
    for name in ("env_steps", "collected_episodes", "replay_episodes", "update_to_data", "collected_return"):
        assert resumed.report()[name] == before[name]
    for kind in ("steps", "episodes"):
        for name, value in content[kind].items():
            np.testing.assert_array_equal(resumed.replay.state()[kind][name], value)
    assert all(np.array_equal(value, weights[name]) for name, value in resumed.policy_state().items())
    finish(resumed)
    assert min(resumed.async_runners.streams) >= calls, "a stream of the run before would repeat its episodes"
    check_counters(resumed, logged=8, before=counted)
    resumed.stop()


def test_a_running_algorithm_goes_back_to_its_checkpoint(asynchronous: Configure, tmp_path: Path) -> None:
    """As population-based training does: the runners live, with streams and calls of what is undone."""
    algorithm = asynchronous().env_runners(rollout_fragment_length=20).build_algo()
    while algorithm.env_steps < 400:
        algorithm.train()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    counted = algorithm.collected_episodes, algorithm.env_steps
    while algorithm.env_steps < 1000:
        algorithm.train()
    calls = algorithm.stream_calls
    algorithm.restore_from_path(str(tmp_path / "checkpoint"))
    assert (algorithm.collected_episodes, algorithm.env_steps) == counted
    finish(algorithm)
    assert min(algorithm.async_runners.streams) >= calls
    check_counters(algorithm, logged=8, before=counted)
    algorithm.stop()


@pytest.mark.long
def test_another_number_of_runners_and_rounds_on_resume(asynchronous: Configure, tmp_path: Path) -> None:
    algorithm = asynchronous().build_algo()
    while algorithm.env_steps < 800:
        algorithm.train()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    steps = algorithm.env_steps
    algorithm.stop()
    local = asynchronous(mode="sync", runners=0, slots=1, env_steps=steps + 200).build_algo()
    local.restore_from_path(str(tmp_path / "checkpoint"))
    assert not isinstance(local.replay, SharedReplay) and local.env_steps == steps
    finish(local)
    assert local.env_steps >= steps + 200
    local.stop()


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_ten_killed_runners_lose_and_double_nothing(asynchronous: Configure) -> None:
    config = asynchronous(env_steps=10**6, updates_per_iteration=1, max_rounds_ahead=1e9)
    algorithm = config.env_runners(rollout_fragment_length=20).build_algo()
    manager = algorithm.env_runner_group._worker_manager
    killed, heard = 0, {}
    deadline = time.monotonic() + 2000
    while killed < 10 or algorithm.async_runners.restarts < 10:
        assert time.monotonic() < deadline, f"{killed} killed, {algorithm.async_runners.restarts} came back"
        algorithm.train()
        if algorithm.async_runners is None or killed == 10:
            continue
        # In the middle of its work: a runner that has been heard of since it was killed last.
        for runner in manager.healthy_actor_ids():
            streams = algorithm.async_runners.streams.items()
            last = max((number for number, totals in streams if totals.runner == runner), default=-1)
            if last > heard.get(runner, -1) and killed < 10:
                heard[runner] = last
                ray.kill(manager.actors()[runner], no_restart=False)
                killed += 1
                break
    assert len(algorithm.async_runners.streams) >= 10
    check_counters(algorithm, logged=8)
    algorithm.stop()


class Owner:
    """Has objects that die with it."""

    def own(self, value: Any) -> list[Any]:
        return [ray.put(value)]


def lost(value: Any) -> Any:
    """A reference to what is lost, as with its node; no process of ours has died."""
    owner: Any = ray.remote(num_cpus=0)(Owner).remote()
    (reference,) = ray.get(owner.own.remote(value))
    ray.kill(owner)
    for _ in range(600):
        try:
            ray.get(reference)
        except ObjectLostError:
            return reference
        time.sleep(0.1)
    raise AssertionError("the object outlives its owner")


@pytest.mark.long
def test_a_result_lost_on_its_way_ends_its_stream(asynchronous: Configure) -> None:
    """Its runner lives: the stream would go on from episodes that nobody has seen."""
    with pytest.raises(UserError, match=r"replay's process died, or .* \(OwnerDiedError\).*--resume"):
        shared_replay._get(lost(0))
    algorithm = asynchronous(env_steps=2400).env_runners(rollout_fragment_length=250).build_algo()
    while not algorithm.async_runners:
        algorithm.train()
    runners = algorithm.async_runners
    known = {totals.runner for totals in runners.streams.values()}
    chosen = next(reference for reference, call in runners._pending.items() if call.runner in known)
    result = ray.get(chosen)
    assert result.episodes, "there is something to lose"
    gone = lost(result)
    runners._pending = {
        gone if reference is chosen else reference: call for reference, call in runners._pending.items()
    }
    finish(algorithm)
    assert algorithm.async_runners.restarts == 1
    check_counters(algorithm, logged=8)
    algorithm.stop()


def test_a_dead_replay_stops_the_run_and_leaves_the_checkpoint(
    asynchronous: Configure, tmp_path: Path
) -> None:
    algorithm = asynchronous().build_algo()
    while algorithm.env_steps < 400:
        algorithm.train()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    ray.kill(algorithm.replay.actor)
    with pytest.raises(UserError, match=r"replay's process died.*--resume"):
        finish(algorithm)
    algorithm.stop()
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "checkpoint"))
    resumed.train()
    resumed.stop()


class JointLost(Exception):
    """One that cannot be unpickled: it takes more than what it says."""

    def __init__(self, joint: str, force: float) -> None:
        super().__init__(f"the {joint}\ncame off at {force} N")


class Broken(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum that raises, or whose rewards are NaN."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.raises:
            raise JointLost("elbow", 7.5)
        return observation, float("nan") * float(reward), terminated, truncated, info

    raises = False


def raising() -> Broken:
    env = Broken(gym.make("Pendulum-v1"))
    env.raises = True
    return env


def poisoned() -> Broken:
    return Broken(gym.make("Pendulum-v1"))


@pytest.mark.parametrize(("mode", "runners"), [("sync", 0), ("sync", 1), ("async", 1)])
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("raising", r"JointLost: the elbow came off at 7.5 N \(.*test_async.py, line \d+\); mend"),
        pytest.param("poisoned", "NaN or infinite", marks=pytest.mark.long),
    ],
)
def test_a_broken_environment_stops_the_run(
    asynchronous: Configure, mode: str, runners: int, env: str, message: str
) -> None:
    algorithm = asynchronous(mode=mode, runners=runners, env=f"{__name__}:{env}").build_algo()
    with pytest.raises(UserError, match=message) as caught:
        finish(algorithm)
    assert "\n" not in str(caught.value)
    if env == "raising":
        shown = "".join(traceback.format_exception(caught.value))
        assert 'raise JointLost("elbow", 7.5)' in shown, "the environment's own traceback"
    algorithm.stop()


class Hanging(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum that hangs in the middle of its first episode, unless one has hung before."""

    def __init__(self, flag: str) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.flag, self.steps = Path(flag), 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps > 150 and not self.flag.exists():
            self.flag.touch()
            time.sleep(10_000)
        return super().step(action)


def hanging(flag: str) -> Hanging:
    return Hanging(flag)


def test_nobody_is_missed_while_there_is_other_work(asynchronous: Configure) -> None:
    config = asynchronous(runners=1, slots=1, env_steps=200)
    config.env_runners(restart_timeout_s=0.2)
    algorithm = config.build_algo()
    finish(algorithm)
    runners = algorithm.async_runners
    ray.kill(algorithm.env_runner_group._worker_manager.actors()[1], no_restart=True)
    algorithm.env_runner_group._worker_manager.set_actor_state(1, healthy=False)
    for _ in range(4):
        assert runners.receive(timeout=0.0, oldest=0) == []
        time.sleep(0.1)
    with pytest.raises(UserError, match="no env runner has come back"):
        for _ in range(50):
            runners.receive(timeout=0.1, oldest=0)
    algorithm.stop()


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("mode", [pytest.param("sync", marks=pytest.mark.long), "async"])
def test_a_runner_that_hangs_is_restarted(
    asynchronous: Configure, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "hung"

    class Informed(SilenceTimer):
        """Has no clock, which a busy machine could outrun: it is over when the environment says that it hangs."""

        ended = 0

        def expired(self, awaited: Collection[int], answered: Collection[int]) -> list[int]:
            if Informed.ended or not flag.exists() or not awaited:
                return []
            Informed.ended += 1
            return list(awaited)

    monkeypatch.setattr(synchronous, "SilenceTimer", Informed)
    monkeypatch.setattr(asynchronous_runners, "SilenceTimer", Informed)
    spec = EnvSpec("Hanging-v0", f"{__name__}:hanging", kwargs={"flag": str(flag)}).to_json()
    config = asynchronous(mode=mode, runners=1, slots=1, env=spec, env_steps=400)
    config.env_runners(restart_timeout_s=1200.0)  # a process may take its time to start
    if mode == "async":
        config.env_runners(rollout_fragment_length=50)
    algorithm = config.build_algo()
    finish(algorithm)
    assert flag.exists() and Informed.ended == 1 and algorithm.env_steps == 400
    assert mode == "sync" or algorithm.async_runners.restarts == 1
    algorithm.stop()


class Held(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum; the first one that steps is held until it is released."""

    def __init__(self, folder: str) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.folder = Path(folder)

    def step(self, action: Any) -> Any:
        with contextlib.suppress(FileExistsError):
            (self.folder / "held").touch(exist_ok=False)
            while not (self.folder / "released").exists():
                time.sleep(0.05)
        return super().step(action)


def held(folder: str) -> Held:
    return Held(folder)


def test_a_silent_runner_holds_nobody_up_and_what_it_brings_late_is_left_out(
    asynchronous: Configure, tmp_path: Path
) -> None:
    spec = EnvSpec("Held-v0", f"{__name__}:held", kwargs={"folder": str(tmp_path)}).to_json()
    config = asynchronous(env=spec, slots=1, env_steps=10**9, max_policy_lag=3)
    config.env_runners(lag_timeout_s=3.0, call_timeout_s=1e6)
    algorithm = config.build_algo()
    while not (tmp_path / "held").exists() or algorithm.gradient_steps < 4 + 3 * 5:
        algorithm.train()
    assert len(algorithm.async_runners.streams) == 1, "the other one goes on alone"
    assert algorithm.gradient_steps - min(c.weights for c in algorithm.async_runners._pending.values()) > 3
    assert algorithm.report()["policy_lag_max"] <= 3
    (tmp_path / "released").touch()
    while len(algorithm.async_runners.streams) == 1:
        algorithm.train()
    (late,) = algorithm.async_runners._late
    newest = {totals.runner: stream for stream, totals in algorithm.async_runners.streams.items()}
    assert newest[late] > 3, "another stream, not the one that was held"
    assert algorithm.report()["policy_lag_max"] <= 3
    check_counters(algorithm, logged=8)
    algorithm.stop()


def endless() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1").unwrapped


@pytest.mark.parametrize(
    ("mode", "runners"), [("sync", 0), pytest.param("sync", 1, marks=pytest.mark.long), ("async", 1)]
)
def test_an_episode_without_end_can_be_interrupted(
    asynchronous: Configure, mode: str, runners: int, tmp_path: Path
) -> None:
    algorithm = asynchronous(mode=mode, runners=runners, env=f"{__name__}:endless").build_algo()
    algorithm.train()
    begin = time.monotonic()
    algorithm.stop_when(lambda: time.monotonic() > begin + 2)
    assert "loss" in algorithm.train()["learners"]["default_policy"], "a record can be made of it"
    assert (algorithm.gradient_steps, algorithm.env_steps) == (4, 0)
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()


def test_two_learners(asynchronous: Configure) -> None:
    algorithm = asynchronous(env_steps=400).learners(num_learners=2).build_algo()
    finish(algorithm)
    assert algorithm.gradient_steps == 4 + 2 * 3
    check_counters(algorithm, logged=8)
    algorithm.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "asink"}, "Did you mean 'async'"),
        ({"runners": 0}, "async collects on remote env runners"),
        ({"max_policy_lag": 0}, "max_policy_lag is 0"),
        ({"max_rounds_ahead": 0}, "max_rounds_ahead is 0"),
        ({"replay_memory_gib": -1}, "replay_memory_gib is -1"),
    ],
)
def test_bad_values_are_refused(asynchronous: Configure, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asynchronous(**settings).validate()
