"""Online finetuning of return-conditioned transformers: ODT, TD3+ODT and their controls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner_group import LearnerGroup

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.online.collected import Collected
from rayrl_dt.algorithms.online.config import OnlineConfig, slots_at_once
from rayrl_dt.algorithms.online.mixture import batch_sources
from rayrl_dt.algorithms.online.shared_replay import SharedReplay, episode_targets, new_replay
from rayrl_dt.algorithms.runners.asynchronous import AsyncRunners, Patience
from rayrl_dt.algorithms.runners.synchronous import Collect, run_on_runners
from rayrl_dt.data.replay import TrajectoryReplay
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.rollout import EpisodeRecord, RolloutsStopped, Slot
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.seeding import derive_seed

__all__ = ["ENV_STEPS", "OnlineDT", "OnlineDTConfig"]

ENV_STEPS = "env_steps"
_EPISODES = "collected_episodes"
_COUNTERS = (
    ENV_STEPS,
    _EPISODES,
    "rounds",
    "round_steps",
    "updates_due",
    "collected_return",
    "asked_return",
    "stream_calls",
)
_REPLAY = "replay.npz"
# Between two looks at what the runners have sent: long enough to cost nothing, short enough that none runs dry.
_SECONDS_OF_UPDATES = 0.1


class OnlineDTConfig(OnlineConfig):
    """Online Decision Transformer with a critic's gradient (TD3+ODT), and what it is compared with.

    Zheng et al. 2022, "Online Decision Transformer"; Yan et al. 2024, "Reinforcement Learning Gradients as Vitamin for
    Online Finetuning Decision Transformers". Pretrains on logged data, then collects whole episodes, keeps them in a
    replay with hindsight returns, and goes on training on those. Any backbone works.

    | method | set |
    |---|---|
    | TD3+ODT | nothing |
    | the same for discrete actions | `online(rl_gradient="expected_q")` |
    | TD3 alone | `online(bc_weight=0, alpha=1)` |
    | deterministic ODT | `online(rl_gradient="none")` |
    | ODT | `online(rl_gradient="none")`, `rl_module(model_config={"head": "gaussian"})` |
    | soft actor-critic | `online(rl_gradient="sac", bc_weight=0, alpha=1)`, the same head |
    | Q-Align online | `online(rl_gradient="q_align")`, a backbone that obeys, such as `"radt"` |

    Differences from the papers and their code: returns-to-go are relabeled once, when an episode enters the replay,
    not at each draw (the same numbers); time-outs bootstrap online as they do offline (`timeout_is_terminal=True` does
    what the code does); `mode="async"` collects while it learns.
    Sizes are for a CPU: width 64, 2 layers, K 5.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or OnlineDT)


class OnlineDT(SequenceAlgorithm):
    """The algorithm of `OnlineDTConfig`.

    Attributes:
        env_steps: environment steps collected so far (saved).
        collected_episodes: their episodes (saved).
        rounds: rounds that have been collected (saved); see `env_steps_per_iteration`.
        round_steps: environment steps of the next one so far (saved).
        updates_due: online updates that what is collected asks for (saved).
        collected_return: mean raw return of the episodes of the last iteration that collected any (saved).
        asked_return: mean raw return that they were asked for (saved).
        stream_calls: calls made to runners in async mode (saved).
        replay: the trajectories that online updates draw from (saved); None while pretraining. In this process, or in
            one of its own when runners or learners are remote.
        async_runners: the runners' calls in async mode; None before the first.
    """

    config: OnlineConfig

    @classmethod
    def get_default_config(cls) -> OnlineDTConfig:
        """Return an `OnlineDTConfig`."""
        return OnlineDTConfig(algo_class=cls)

    def setup(self, config: Any) -> None:
        """Build everything, and take over the weights of the policy to start from."""
        self.env_steps = self.collected_episodes = self.stream_calls = 0
        self.rounds = self.round_steps = self.updates_due = 0
        self.collected_return: float | None = None
        self.asked_return: float | None = None
        self.replay: TrajectoryReplay | SharedReplay | None = None
        self.async_runners: AsyncRunners | None = None
        self._policy: tuple[Any, int] | None = None
        self._collected = Collected()
        super().setup(config)
        if self.config.why_no_env is not None:
            raise UserError(f"there is no environment to finetune in: {self.config.why_no_env}")
        if self.config.start_from is not None:
            _take_over(self.config.start_from, self.learner_group)
            # From here on a checkpoint needs nothing but itself.
            self.config = self.config.copy(copy_frozen=False)
            self.config.start_from = None
            self.config.freeze()

    @property
    def online(self) -> bool:
        """Whether pretraining is over."""
        return self.gradient_steps >= self.config.pretrain_steps

    @property
    def done(self) -> bool:
        """Whether the run has collected all of its environment steps and learned from them."""
        return self.online and not self._collects and self._updates_left <= 0

    @property
    def at_milestone(self) -> bool:
        """Whether the policy is to be evaluated, whatever the interval: the final one, and the one to be finetuned."""
        return self.done or (self.online and self.replay is None)

    @property
    def _collects(self) -> bool:
        """Whether there is more to collect: a round that has begun is completed."""
        return self.env_steps < self.config.env_steps or self.round_steps > 0

    @property
    def _updates_left(self) -> int:
        """Updates that are due and not taken yet, of pretraining, too (in rounds: an interrupt may leave some)."""
        return self.config.pretrain_steps + self.updates_due - self.gradient_steps

    @property
    def expected_gradient_steps(self) -> int:
        """Gradient steps of the whole run, if its rounds stay as long as they were."""
        return self.config.expected_gradient_steps(self.env_steps, self.rounds, self.updates_due)

    def learn(self) -> None:
        """Pretrain for some steps, or collects and take one round of updates."""
        if self.done:
            return
        self._collected = Collected()
        if not self.online:
            iterators = self.offline_data.iterators(self.config.num_learners)
            self.updates.take(iterators, min(self.config.gradient_steps_per_iteration, self._updates_left))
            return
        if self.replay is None:
            self.replay = new_replay(self.config, self.offline_data.full.info, self.policy_spec.normalizer)
            if self.config.logged_share is None:
                self.replay.fill(self.offline_data.store)
        if self.config.mode == "async":
            self._collect_and_update(self.replay)
            return
        try:
            while self._collects and self._updates_left <= 0:  # rounds before the first update allow none
                self._collect(self.replay)
        except RolloutsStopped:
            return  # the round is collected anew, and is the same
        if self._updates_left > 0:
            self.updates.take(batch_sources(self.config, self.offline_data, self.replay), self._updates_left)

    def _collect(self, replay: TrajectoryReplay | SharedReplay) -> None:
        """Run whole episodes until a round is complete; each is a function of the weights and its number."""
        begin, config, runners = time.perf_counter(), self.config, self.env_runner_group
        if runners.num_remote_env_runners() == 0:
            runners.local_env_runner.load_policy(self.policy_state())
            call = Collect(stop=self.stop_asked)
        else:
            call = Collect(ray.put(self.policy_state()))
        target = episode_targets(config, replay, self.offline_data.store)
        collected: list[EpisodeRecord] = []
        left = max(1, config.env_steps_per_iteration - self.round_steps)
        of_run = max(left, config.env_steps - self.env_steps)
        while (played := sum(episode.length for episode in collected)) < left:
            first = self.collected_episodes + len(collected)
            slots = [
                Slot(target(first + j), 1, derive_seed(config.seed or 0, "collect", first + j) % 2**31)
                for j in range(slots_at_once(config, of_run - played, self.env_steps + played, first))
            ]
            collected += run_on_runners(self, runners, slots, call, stop=self.stop_asked).episodes
        self._take_in(collected, replay)
        self._collected.env_steps += sum(episode.length for episode in collected)
        self._collected.seconds += time.perf_counter() - begin

    def _take_in(self, episodes: Sequence[EpisodeRecord], replay: TrajectoryReplay | SharedReplay) -> None:
        """Add finished episodes to the replay and count them, and the updates of the rounds that they complete."""
        recorded = [episode for episode in episodes if episode.trajectory is not None]
        trajectories = [episode.trajectory for episode in recorded if episode.trajectory is not None]
        if self.config.timeout_is_terminal:
            trajectories = [replace(each, terminated=True) for each in trajectories]
        replay.add(trajectories, [episode.target for episode in recorded])
        for episode in episodes:
            if self._collects:
                self.round_steps += episode.length
            self.env_steps += episode.length
            if self.round_steps >= self.config.env_steps_per_iteration:
                self.rounds += 1
                self.round_steps = 0
                if self.env_steps > self.config.collect_before_update:
                    self.updates_due += self.config.updates_per_iteration
        self.collected_episodes += len(episodes)
        self.collected_return, self.asked_return = self._collected.mean_returns(episodes)

    def _collect_and_update(self, replay: TrajectoryReplay | SharedReplay) -> None:
        """Take one iteration's updates while the runners go on collecting.

        Updates wait for a round to be complete, as in sync mode, and for a runner where its weights would fall further
        behind than `max_policy_lag`. Runners wait where they are `max_rounds_ahead` ahead of the updates.
        """
        config, begin = self.config, time.perf_counter()
        goal = self.gradient_steps + config.updates_per_iteration
        chunk = 1
        while self.gradient_steps < goal and not self.done and not self.stop_asked():
            allowed = min(self._updates_left, goal - self.gradient_steps, self._lag_left(), chunk)
            self._exchange(replay, timeout=0.0 if allowed > 0 else 1.0)
            if allowed <= 0:
                continue
            before, seconds = self.gradient_steps, self.last_update_seconds
            self.updates.take(batch_sources(config, self.offline_data, replay), allowed)
            if self.gradient_steps < before + allowed:
                break  # an observer wants to stop
            seconds = self.last_update_seconds - seconds
            chunk = max(1, int(allowed * _SECONDS_OF_UPDATES / max(seconds, 1e-6)))
        self._collected.seconds = time.perf_counter() - begin

    def _exchange(self, replay: TrajectoryReplay | SharedReplay, *, timeout: float) -> None:
        """Take in what the runners have sent, and give them their next calls."""
        if self.async_runners is None:
            self.async_runners = _async_runners(self)
        ahead = self._updates_left / self.config.updates_per_iteration
        if self._collects and ahead < self.config.max_rounds_ahead:
            self.async_runners.send(self._current_policy)
            self.stream_calls = self.async_runners.calls
        oldest = self.gradient_steps - self.config.policy_lag_bound
        for result in self.async_runners.receive(timeout=timeout, oldest=oldest):
            self._collected.lags.append(self.gradient_steps - result.weights)
            self._collected.env_steps += result.env_steps
            if result.episodes:
                self._take_in(result.episodes, replay)

    def _current_policy(self) -> tuple[Any, int]:
        """Return the policy's weights in the object store, anew once they have moved a quarter of what lag allows."""
        step = self.gradient_steps
        if self._policy is None or step - self._policy[1] >= max(1, self.config.policy_lag_bound // 4):
            self._policy = ray.put(self.policy_state()), step
        return self._policy

    def _lag_left(self) -> int:
        """Return how many updates may be taken before the oldest weights that a runner acts with are too old."""
        oldest = None if self.async_runners is None else self.async_runners.oldest_weights
        return self.config.policy_lag_bound - (0 if oldest is None else self.gradient_steps - oldest)

    def report(self) -> dict[str, Any]:
        """Return where the finetuning stands: phase, environment steps, replay, update to data, policy lag."""
        replay = self.replay
        updates = max(0, self.gradient_steps - self.config.pretrain_steps)
        return {
            "phase": "pretraining" if replay is None else "online",
            ENV_STEPS: self.env_steps,
            _EPISODES: self.collected_episodes,
            "collected_return": self.collected_return,
            "asked_return": self.asked_return,
            "update_to_data": updates / self.env_steps if self.env_steps else None,
            "replay_episodes": 0 if replay is None else len(replay),
            "replay_steps": 0 if replay is None else replay.num_steps,
            **self._collected.report(),
            "runner_restarts": 0 if self.async_runners is None else self.async_runners.restarts,
        }

    def cleanup(self) -> None:
        """End the replay's process with the rest."""
        if isinstance(self.replay, SharedReplay):
            self.replay.stop()
        super().cleanup()

    def save_beside(self, folder: Path) -> None:
        """Write the replay, too."""
        super().save_beside(folder)
        if self.replay is not None:
            self.replay.save(folder / _REPLAY)

    def restore_beside(self, folder: Path) -> None:
        """Restore the replay.

        Raises:
            UserError: it is missing or truncated.
        """
        super().restore_beside(folder)
        if isinstance(self.replay, SharedReplay):
            self.replay.stop()
        self.replay = None
        if self.collected_episodes > 0:
            self.replay = new_replay(self.config, self.offline_data.full.info, self.policy_spec.normalizer)
            self.replay.load(folder / _REPLAY)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add the counters of collection."""
        return {**super().get_state(*args, **kwargs), **{name: getattr(self, name) for name in _COUNTERS}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore RLlib's state and the counters; calls under way are of another past, and are dropped."""
        calls = self.stream_calls
        super().set_state(state)
        for name in _COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))
        # Runners that live go on with streams of this process: no number of theirs may come again.
        self.stream_calls = max(calls, self.stream_calls)
        self.async_runners = self._policy = None


def _async_runners(algorithm: OnlineDT) -> AsyncRunners:
    """Return the calls of an algorithm's runners, as its config has them."""
    config = algorithm.config
    return AsyncRunners(
        algorithm.env_runner_group,
        steps=config.rollout_fragment_length,
        calls=algorithm.stream_calls,
        patience=Patience(config.lag_timeout_s, config.call_timeout_s, config.restart_timeout_s),
    )


def _take_over(path: str, learners: LearnerGroup) -> None:
    """Give the learners the weights of a policy to start from."""
    weights = Bundle.open(path).model.state_dict()
    state = learners.get_weights(module_ids=[DEFAULT_MODULE_ID])
    module = state[DEFAULT_MODULE_ID]
    for prefix in ("model", "target_model", "averaged_model"):  # there may be no others than the first
        taken = {f"{prefix}.{name}": value.numpy() for name, value in weights.items()}
        module.update({name: value for name, value in taken.items() if name in module})
    learners.set_weights(state)
