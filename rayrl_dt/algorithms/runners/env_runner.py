"""The env runner: one batched forward for all slots, whole episodes out, fixed quotas in evaluation."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rayrl_dt.algorithms.environments import copies
from rayrl_dt.algorithms.module import SequenceRLModule
from rayrl_dt.algorithms.rllib_internals import RLlibEnvRunner
from rayrl_dt.algorithms.runners.asynchronous import ContinueStream, StreamResult
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.rollout import EpisodeRecord, Rollouts, Slot, run_slots
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector, FinishedEpisode
from rayrl_dt.policy.refiner import Refiner
from rayrl_dt.precision import resolve
from rayrl_dt.seeding import derive_seed, torch_generator

__all__ = ["SequenceEnvRunner"]


@dataclass
class _Stream:
    """Environments that go on from call to call.

    Attributes:
        collector: steps them.
        number: of the call that began it.
        episodes: that it has brought.
    """

    collector: Collector
    number: int
    episodes: int = 0


class SequenceEnvRunner(RLlibEnvRunner):
    """Collects with context windows kept beside the environments rather than cut from episode objects.

    `sample` returns whole episodes only: one that is still running goes on in the next call.
    """

    module: SequenceRLModule
    env: Any

    def make_env(self) -> None:
        """Create the vector environment; with no environment configured the runner has none."""
        self.num_envs = 0
        self._collector: Collector | None = None
        self._stream: _Stream | None = None
        environment = self.config.rollout_env
        if environment is None:
            return
        if self.env is not None:
            self.env.close()
        self.num_envs = self.config.num_envs_per_env_runner
        self.env = self._vector_env(environment, self.num_envs)
        self.begin_anew()

    def make_module(self) -> None:
        """Build the module, in eval mode for good."""
        super().make_module()
        self.module.eval()
        self._weights_of: int | None = None

    def get_spaces(self) -> dict[str, Any]:
        """Return the environment's spaces, or those of the data where there is no environment."""
        single = (self.config.observation_space, self.config.action_space)
        if self.env is None:
            return {DEFAULT_MODULE_ID: single, INPUT_ENV_SINGLE_SPACES: single, INPUT_ENV_SPACES: single}
        return {
            INPUT_ENV_SPACES: (self.env.observation_space, self.env.action_space),
            INPUT_ENV_SINGLE_SPACES: (self.env.single_observation_space, self.env.single_action_space),
            DEFAULT_MODULE_ID: single,
        }

    def evaluate(self, slots: list[Slot], *, sample_actions: bool) -> Rollouts:
        """Run each slot's quota of episodes in a vector environment of `len(slots)` slots.

        Args:
            slots: targets, quotas and seeds.
            sample_actions: draw discrete actions from the softmax instead of taking the most likely.
        """
        env = self._vector_env(self._environment.for_evaluation, len(slots))
        try:
            # What is measured is the policy and not the rounding, which an environment like Hopper blows up.
            # Draws are those of `evaluate_model`: the same policy has the same episodes there.
            actor = self._actor(len(slots), sample_actions, slots[0].seed, precision="fp32")
            actor.refiner = self._refiner()
            return run_slots(Collector(env, actor, record=False), slots)
        finally:
            env.close()

    def load_policy(self, weights: dict[str, Any]) -> None:
        """Take over the weights of the policy network, as NumPy arrays."""
        self._weights_of = None
        self.module.model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    def collect(self, slots: list[Slot], stop: Callable[[], bool] | None = None) -> Rollouts:
        """Run each slot's quota with exploration, and record the steps.

        What is collected is a function of the weights and the slots: nothing goes on from one call to the next. So
        environments are made anew, which takes as long as 10 to 40 steps of Gymnasium's do (Atari's 250): a reset, with
        a seed or without, leaves what a user's environment or its wrappers count, average or learn.

        Args:
            slots: targets, quotas and seeds.
            stop: called before every step; True ends the collection, for nothing.
        """
        env = self._vector_env(self._environment, len(slots))
        try:
            actor = self._explorer(len(slots), slots[0].seed)
            return run_slots(Collector(env, actor, record=True), slots, stop=stop)
        finally:
            env.close()

    def continue_stream(self, call: ContinueStream) -> StreamResult:
        """Go on collecting until an episode ends, or for some steps; running episodes stay for the next call.

        Both give way to the time that a call takes at least.
        """
        if self._weights_of != call.weights:
            self.load_policy(ray.get(call.policy))
            self._weights_of = call.weights
        if self._stream is None or self._stream.number < call.oldest_stream:
            # A new process, or the first call: the call's number has never seeded anything.
            seed = derive_seed(self.config.seed or 0, "stream", call.number)
            collector = Collector(self.env, self._explorer(self.num_envs, seed), record=True)
            collector.targets[:] = self.config.rollout_target()
            collector.reset(seed=derive_seed(seed, "env") % 2**31)
            self._stream = _Stream(collector, call.number)
        stream = self._stream
        before, steps_before = stream.episodes, stream.collector.env_steps
        finished: list[FinishedEpisode] = []
        begin = time.monotonic()
        for step in itertools.count(1):
            finished += stream.collector.step()
            passed = time.monotonic() - begin
            enough = finished or step >= call.steps
            if (enough and passed >= call.least_seconds) or passed > call.seconds:
                break
        stream.episodes += len(finished)
        return StreamResult(
            stream=stream.number,
            episodes=tuple(
                EpisodeRecord(episode.target, episode.episode_return, episode.length, episode.trajectory)
                for episode in finished
            ),
            env_steps=stream.collector.env_steps - steps_before,
            weights=call.weights,
            episodes_before=before,
        )

    def _explorer(self, slots: int, seed: int) -> VectorActor:
        """Return the policy as it collects: drawn actions, or noise on them where there is nothing to draw."""
        stochastic = self.module.model.spec.head.stochastic
        return VectorActor(
            self.module.model,
            slots,
            sample=torch_generator(seed, "exploration"),
            noise=0.0 if stochastic else self.config.exploration_noise,
            precision=self._precision,
        )

    def run_episodes(
        self, num_timesteps: int | None, num_episodes: int | None, *, explore: bool, reset: bool
    ) -> tuple[list[SingleAgentEpisode], int]:
        """Collect whole episodes; see `RLlibEnvRunner`."""
        if self._collector is None:
            seed = derive_seed(self.config.seed or 0, "rollout", self.worker_index or 0)
            actor = self._actor(self.num_envs, explore, seed, precision=self._precision)
            self._collector = Collector(self.env, actor, record=True)
        collector = self._collector
        collector.targets[:] = self.config.rollout_target()
        if reset:
            position = (self.worker_index or 0, collector.env_steps)
            collector.reset(seed=derive_seed(self.config.seed or 0, "rollout-env", *position) % 2**31)
        begin = collector.env_steps
        finished: list[FinishedEpisode] = []
        while (
            len(finished) < num_episodes
            if num_episodes is not None
            else collector.env_steps - begin < (num_timesteps or 0)
        ):
            finished.extend(collector.step())
        return [self._to_rllib(episode) for episode in finished], collector.env_steps - begin

    def _to_rllib(self, episode: FinishedEpisode) -> SingleAgentEpisode:
        trajectory = episode.trajectory
        assert trajectory is not None
        return SingleAgentEpisode(
            # Lists of rows: RLlib asks for the truth value of what it gets.
            observations=list(trajectory.observations),
            actions=list(trajectory.actions),
            rewards=trajectory.rewards.tolist(),
            terminated=trajectory.terminated,
            truncated=not trajectory.terminated,
            observation_space=self.config.observation_space,
            action_space=self.config.action_space,
            len_lookback_buffer=0,
        ).to_numpy()

    @property
    def _precision(self) -> str:
        """The arithmetic of collection."""
        return resolve(self.config.precision, self.device)

    def _actor(self, slots: int, sample_actions: bool, seed: int, *, precision: str) -> VectorActor:
        sample: torch.Generator | None = None
        if sample_actions and self.module.model.spec.head.drawn_in_evaluations:
            sample = torch_generator(seed, "actions")
        return VectorActor(self.module.model, slots, sample=sample, precision=precision)

    def _refiner(self) -> Refiner | None:
        """Return what refines the actions of evaluations; the critic is read anew, for it may have been trained on."""
        settings = self.config.refinement
        if settings is None:
            return None
        return Bundle.open(self.config.critic_from).refiner(settings, self.module.model.spec)

    @property
    def _environment(self) -> RecordedEnv:
        environment: RecordedEnv | None = self.config.rollout_env
        if environment is None:
            raise UserError(f"nothing can be rolled out: {self.config.why_no_env}")
        return environment

    def _vector_env(self, environment: RecordedEnv, slots: int) -> Any:
        config = self.config
        return copies(config, environment, config.resolved_spec, slots, mode=config.gym_env_vectorize_mode)

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over weights; see `RLlibEnvRunner`."""
        self._weights_of = None
        super().set_state(state)
        if self.module is not None:
            self.module.eval()

    def assert_healthy(self) -> None:
        """Refuse a runner without a module, or without the environment that is configured."""
        assert self.module is not None
        assert self.config.rollout_env is None or self.env is not None

    def stop(self) -> None:
        """Close the environment."""
        if self.env is not None:
            self.env.close()
