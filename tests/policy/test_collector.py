from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, store_for
from scripted_env import ScriptedEnv, reward_of, scripted_vector

from rayrl_dt import envs
from rayrl_dt.data import windows
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.errors import EnvironmentFailed, UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector, FinishedEpisode
from rayrl_dt.types import Window

LENGTHS = ((3, 5), (1, 1, 4), (9,))


def scripted_model(**options: Any) -> SequenceModel:
    return build_model(store_for(ScriptedEnv(0, (1,), **options)))


def scripted_collector(*, record: bool = True, lengths: Any = LENGTHS, **options: Any) -> Collector:
    vector = scripted_vector(*lengths, **options)
    actions = {"actions": options["actions"]} if "actions" in options else {}
    return Collector(vector, VectorActor(scripted_model(**actions), len(lengths)), record=record)


def collect(collector: Collector, steps: int) -> list[FinishedEpisode]:
    return [episode for _ in range(steps) for episode in collector.step()]


@pytest.mark.parametrize("actions", [None, 3])
def test_episodes_are_those_of_the_environment(actions: int | None) -> None:
    collector = scripted_collector(**({} if actions is None else {"actions": actions}))
    collector.targets[:] = [10.0, 20.0, 30.0]
    collector.reset(seed=0)
    episodes = collect(collector, 60)
    steps = 0
    for slot, env in enumerate(collector.env.envs):
        own = [episode for episode in episodes if episode.slot == slot]
        expected = [LENGTHS[slot][number % len(LENGTHS[slot])] for number in range(len(own))]
        assert [episode.length for episode in own] == expected
        # One vector step per episode goes to its reset.
        assert 60 - max(LENGTHS[slot]) - 1 <= sum(expected) + len(own) <= 60 + 1
        for number, episode in enumerate(own):
            trajectory = episode.trajectory
            rewards = [reward_of(slot, number, step) for step in range(episode.length)]
            assert episode.episode_return == sum(rewards) == trajectory.episode_return
            assert episode.target == 10.0 * (slot + 1)
            np.testing.assert_array_equal(trajectory.rewards, rewards)
            rows = [[slot, number, step] for step in range(episode.length + 1)]
            np.testing.assert_array_equal(trajectory.observations, rows)
            np.testing.assert_array_equal(trajectory.actions, env.actions_taken[number])
            assert trajectory.terminated == (number % 2 == 0)
            assert trajectory.actions.dtype == env.action_space.dtype
        steps += sum(len(taken) for taken in env.actions_taken)
    assert collector.env_steps == steps, "a reset is no step"


def test_without_recording_there_are_numbers_only() -> None:
    recorded, bare = scripted_collector(), scripted_collector(record=False)
    for collector in (recorded, bare):
        collector.reset(seed=0)
    for one, other in zip(collect(recorded, 40), collect(bare, 40), strict=True):
        assert other.trajectory is None
        assert (one.slot, one.episode_return, one.length) == (other.slot, other.episode_return, other.length)
    assert bare._history == []


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
def test_episodes_replay_in_a_single_environment(name: str) -> None:
    limit, slots, seeds = 17, 3, [11, 12, 13]
    single = envs.make(name, max_episode_steps=limit)
    model = build_model(store_for(single))
    actor = VectorActor(
        model, slots, sample=None if model.spec.head.continuous else torch.Generator().manual_seed(0)
    )
    collector = Collector(
        envs.RecordedEnv.named(name, max_episode_steps=limit).make_vector(slots), actor, record=True
    )
    collector.reset(seed=list(seeds))
    episodes = collect(collector, 60)
    assert {episode.trajectory.terminated for episode in episodes} >= {name == "CartPole-v1"}
    for slot in range(slots):
        own = [episode for episode in episodes if episode.slot == slot]
        assert len(own) >= 3
        for number, episode in enumerate(own):
            observation, _ = single.reset(seed=seeds[slot] if number == 0 else None)
            total, terminated, truncated = 0.0, False, False
            for step in range(episode.length):
                assert not (terminated or truncated)
                np.testing.assert_array_equal(observation, episode.trajectory.observations[step])
                observation, reward, terminated, truncated, _ = single.step(episode.trajectory.actions[step])
                total += float(reward)
            assert (terminated or truncated) and episode.trajectory.terminated == terminated
            np.testing.assert_array_equal(observation, episode.trajectory.observations[-1])
            assert episode.episode_return == total


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("delayed", [False, True])
def test_the_actor_sees_what_training_shows(name: str, delayed: bool) -> None:
    """The field's commonest bug: windows in a rollout that differ from those in training."""
    slots, length, limit = 3, 6, 14
    env = envs.make(name, max_episode_steps=limit)
    data = store_for(env)
    model = build_model(data.with_delayed_rewards() if delayed else data, context_length=length)
    actor = VectorActor(
        model, slots, sample=None if model.spec.head.continuous else torch.Generator().manual_seed(0)
    )
    collector = Collector(
        envs.RecordedEnv.named(name, max_episode_steps=limit).make_vector(slots), actor, record=True
    )
    collector.targets = np.array([5.0, -80.0, 300.0])
    collector.reset(seed=[1, 2, 3])

    asked: list[Window[np.ndarray[Any, Any]]] = []
    model.register_forward_pre_hook(
        lambda _, args: asked.append(Window(**{k: v.numpy().copy() for k, v in args[0].to_dict().items()}))
    )
    seen: list[list[dict[str, Any]]] = [[] for _ in range(slots)]
    episodes: list[FinishedEpisode] = []
    shown: list[list[dict[str, Any]]] = []
    # Long enough for the context buffer to move its window to the front.
    for _ in range(300):
        acting = np.flatnonzero(~collector._resetting)
        asked.clear()
        finished = collector.step()
        if len(acting):
            (window,) = asked
            for row, slot in enumerate(acting):
                seen[slot].append({k: v[row] for k, v in window.to_dict().items()})
        for episode in finished:
            assert len(seen[episode.slot]) == episode.length
            episodes.append(episode)
            shown.append(seen[episode.slot])
            seen[episode.slot] = []
    assert len(episodes) > 40

    store = TrajectoryStore.from_trajectories(
        [episode.trajectory for episode in episodes],
        DatasetInfo("rollout", env.observation_space, env.action_space),
    )
    if delayed:
        store = store.with_delayed_rewards()
    for number, (episode, steps) in enumerate(zip(episodes, shown, strict=True)):
        for step, window in enumerate(steps):
            real = min(step + 1, length)
            begin = step + 1 - real
            expected = windows.gather(store, np.array([number]), np.array([begin]), real)
            assert window["mask"].tolist() == [False] * (length - real) + [True] * real
            for field in ("observations", "actions", "timesteps", "returns_to_go"):
                assert (window[field][: length - real] == 0).all(), "padding is zero, as in training"
            np.testing.assert_array_equal(window["observations"][-real:], expected.observations[0])
            np.testing.assert_array_equal(window["timesteps"][-real:], expected.timesteps[0])
            np.testing.assert_array_equal(window["actions"][-real:-1], expected.actions[0, :-1])
            assert (window["actions"][-1] == 0).all(), "the action that is asked for is not known yet"
            # What was asked for and what came differ by the same amount at every step.
            gap = window["returns_to_go"][-real:] - expected.returns_to_go[0]
            missed = episode.target - episode.episode_return
            np.testing.assert_allclose(gap, missed, rtol=1e-5, atol=1e-3)


def test_equal_seeds_give_equal_episodes() -> None:
    def run(seed: int) -> list[Any]:
        env = envs.make("CartPole-v1")
        model = build_model(store_for(env))
        actor = VectorActor(model, 4, sample=torch.Generator().manual_seed(seed))
        collector = Collector(envs.RecordedEnv.named("CartPole-v1").make_vector(4), actor, record=True)
        collector.reset(seed=seed)
        return [
            (e.slot, e.length, e.trajectory.observations.tobytes(), e.trajectory.actions.tobytes())
            for e in collect(collector, 80)
        ]

    first = run(0)
    assert len(first) > 4
    assert first == run(0)
    assert first != run(1)


def test_the_target_of_an_episode_is_that_at_its_start() -> None:
    collector = scripted_collector(lengths=((4,),))
    collector.reset(seed=0)
    collector.targets[:] = 7.0
    collect(collector, 2)
    collector.targets[:] = 8.0
    episodes = collect(collector, 10)
    assert [episode.target for episode in episodes] == [7.0, 8.0]


def test_a_reset_drops_running_episodes() -> None:
    collector = scripted_collector(lengths=((4,), (6,)))
    collector.reset(seed=0)
    collect(collector, 3)
    collector.reset(seed=0)
    episodes = collect(collector, 6)
    assert [(e.slot, e.length) for e in episodes] == [(0, 4), (1, 6)]
    assert all(e.trajectory.observations[0, 1] == 1 for e in episodes), "the second episode of each"


def test_inactive_slots_count_for_nothing() -> None:
    collector = scripted_collector()
    collector.active[:] = [True, False, True]
    collector.reset(seed=0)
    episodes = collect(collector, 30)
    assert {episode.slot for episode in episodes} == {0, 2}
    counted = sum(len(taken) for slot in (0, 2) for taken in collector.env.envs[slot].actions_taken)
    assert collector.env_steps == counted


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_nan_from_the_environment_is_reported(what: str) -> None:
    collector = scripted_collector(lengths=((5,), (5,)), poison={what: (1, 2)})
    collector.reset(seed=0)
    assert len(collect(collector, 7)) == 2
    with pytest.raises(UserError, match=r"NaN or infinite.*physics"):
        collector.step()


class Faulty(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum as of Gym before 0.26, or one that raises or returns nonsense in its second step."""

    def __init__(self, fault: str) -> None:
        super().__init__(gym.make("Pendulum-v1").unwrapped)
        self.fault, self.steps = fault, 0

    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return observation if self.fault == "old reset" else (observation, info)

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, *ends, info = super().step(action)
        if self.steps == 2 and self.fault == "draws":
            self.np_random.choice([])
        if self.steps == 2 and self.fault == "raises":
            raise ZeroDivisionError("the joint\nhas no\nlength")
        if self.steps == 2 and self.fault == "grows":
            observation = np.zeros(4, np.float32)
        if self.fault == "no reward":
            return observation, None, *ends, info
        if self.fault == "old step":
            return observation, reward, ends[0], info
        return observation, reward, *ends, None if self.steps == 2 and self.fault == "no info" else info


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("old reset", r"raised ValueError: .*; mend the environment: .*reset takes seed and options"),
        (
            "old step",
            r"raised ValueError: not enough values to unpack .*step returns \(observation, reward, term",
        ),
        (
            "raises",
            r"ZeroDivisionError: the joint has no length \(\S*test_collector.py, line \d+\); mend the environment$",
        ),
        (
            "draws",
            r"raised ValueError: .*cannot be empty.* \(\S*test_collector.py, line \d+\); mend the environment$",
        ),
        ("no reward", r"raised TypeError: a reward is None, and must be a number; mend"),
        ("grows", r"raised TypeError: an observation of shape \(4,\), where its space has \(3,\); mend"),
        ("no info", r"raised TypeError: info is None, and must be a dictionary; mend"),
    ],
)
def test_what_is_wrong_with_an_environment_is_told_in_one_line(fault: str, message: str) -> None:
    vector = envs.vectorize(lambda: PlainEnv(Faulty(fault), None), 2)
    actor = VectorActor(build_model(store_for(gym.make("Pendulum-v1"))), 2)
    collector = Collector(vector, actor, record=False)
    with pytest.raises(EnvironmentFailed, match=message) as raised:
        collector.reset(seed=0)
        collect(collector, 3)
    assert "\n" not in str(raised.value)


def test_an_episode_without_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayrl_dt.policy.collector.LONGEST_EPISODE", 5)
    collector = scripted_collector(lengths=((5,), (2, 6), (9,)))
    collector.active[2] = False
    collector.reset(seed=0)
    assert len(collect(collector, 7)) == 2
    with pytest.raises(UserError, match=r"5 steps and no episode has ended.*max_episode_steps"):
        collector.step()
    limited = envs.RecordedEnv.named("Pendulum-v1").make_vector(1)
    allowed = Collector(
        limited, VectorActor(build_model(store_for(envs.make("Pendulum-v1"))), 1), record=False
    )
    allowed.reset(seed=0)
    assert [episode.length for episode in collect(allowed, 200)] == [200], (
        "the environment's own limit is longer"
    )


def test_nan_in_an_idle_slot_is_nobodys_problem() -> None:
    vector = gym.vector.SyncVectorEnv(
        [lambda: ScriptedEnv(0, (5,)), lambda: ScriptedEnv(1, (5,), poison={"reward": (0, 2)})]
    )
    collector = Collector(vector, VectorActor(scripted_model(), 2), record=False)
    collector.active[1] = False
    collector.reset(seed=0)
    assert len(collect(collector, 12)) == 2


def test_nan_names_the_environment() -> None:
    vector = envs.RecordedEnv.named("Pendulum-v1").make_vector(1)
    model = build_model(store_for(envs.make("Pendulum-v1")))
    collector = Collector(vector, VectorActor(model, 1), record=False)
    collector.reset(seed=0)
    vector.envs[0].unwrapped.state = np.array([np.nan, 0.0])
    with pytest.raises(UserError, match="Pendulum-v1"):
        collector.step()


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.SAME_STEP, gym.vector.AutoresetMode.DISABLED])
def test_other_ways_to_reset_are_refused(mode: gym.vector.AutoresetMode) -> None:
    vector = scripted_vector((3,), autoreset=mode)
    with pytest.raises(UserError, match="reset on the next step"):
        Collector(vector, VectorActor(scripted_model(), 1), record=False)


class Reusing(gym.vector.VectorWrapper):
    """Hands out the same arrays at every step, as some vector environments do."""

    def reset(self, **options: Any) -> Any:
        observations, info = self.env.reset(**options)
        self._kept = observations.copy(), np.zeros(self.num_envs)
        return self._kept[0], info

    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = self.env.step(actions)
        self._kept[0][:], self._kept[1][:] = observations, rewards
        return *self._kept, *rest


def test_environments_may_reuse_their_buffers() -> None:
    results = []
    for wrap in (lambda env: env, Reusing):
        collector = Collector(wrap(scripted_vector(*LENGTHS)), VectorActor(scripted_model(), 3), record=True)
        collector.reset(seed=0)
        results.append(collect(collector, 30))
    for one, other in zip(*results, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one.trajectory, name), getattr(other.trajectory, name))


class Still:
    """An actor that does nothing, fast."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def act(self, observations: Any, *_: Any) -> Any:
        return np.stack([self.action] * len(observations))


def test_the_history_stays_short_and_whole() -> None:
    vector = scripted_vector((7, 300), (1300,))
    collector = Collector(vector, Still(np.zeros(1, np.float32)), record=True)  # type: ignore[arg-type]
    collector.reset(seed=0)
    longest, episodes = 0, []
    for _ in range(2700):
        episodes += collector.step()
        longest = max(longest, len(collector._history))
    assert longest < 1024 + 1300 + 2
    assert [e.length for e in episodes if e.slot == 1] == [1300] * 2
    for episode in episodes:
        steps = np.arange(episode.length + 1)
        np.testing.assert_array_equal(episode.trajectory.observations[:, 2], steps)


def test_image_observations_stay_bytes() -> None:
    # Collecting does not look at the values; the model would refuse images.
    class Picture(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(0, 255, (4, 4, 1), np.uint8)
        action_space = gym.spaces.Discrete(2)

        def reset(self, **_: Any) -> Any:
            return np.full((4, 4, 1), 200, np.uint8), {}

        def step(self, _: Any) -> Any:
            return np.full((4, 4, 1), 201, np.uint8), 1.0, True, False, {}

    vector = gym.vector.SyncVectorEnv([Picture] * 2)
    collector = Collector(vector, Still(np.int64(0)), record=True)  # type: ignore[arg-type]
    collector.reset()
    (first, _) = collector.step()
    assert first.trajectory.observations.dtype == np.uint8
    assert first.trajectory.observations[:, 0, 0, 0].tolist() == [200, 201]
