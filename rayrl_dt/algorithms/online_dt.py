"""Online finetuning of return-conditioned transformers: ODT, TD3+ODT and their controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.rllib.core import DEFAULT_MODULE_ID

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.online_config import OnlineConfig
from rayrl_dt.algorithms.runner_calls import Collect, run_on_runners
from rayrl_dt.data.replay import TrajectoryReplay
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.rollout import EpisodeRecord, Slot
from rayrl_dt.interop.bundle import load_model
from rayrl_dt.seeding import derive_seed

__all__ = ["ENV_STEPS", "OnlineDT", "OnlineDTConfig"]

ENV_STEPS = "env_steps"
_EPISODES = "collected_episodes"
_COUNTERS = (ENV_STEPS, _EPISODES, "rounds", "collected_return")
_REPLAY = "replay.npz"


class OnlineDTConfig(OnlineConfig):
    """Online Decision Transformer with a critic's gradient (TD3+ODT), and what it is compared with.

    Zheng et al. 2022, "Online Decision Transformer"; Yan et al. 2024, "Reinforcement Learning Gradients as Vitamin for
    Online Finetuning Decision Transformers". Pretrains on logged data, then collects whole episodes, keeps them in a
    replay with hindsight returns, and goes on training on those. Any backbone works.

    | method | set |
    |---|---|
    | TD3+ODT | nothing |
    | TD3 alone | `online(bc_weight=0, alpha=1)` |
    | deterministic ODT | `online(rl_gradient="none")` |
    | ODT | `online(rl_gradient="none")`, `rl_module(model_config={"head": "gaussian"})` |

    Differences from the papers and their code: returns-to-go are relabelled once, when an episode enters the replay,
    not at each draw (the same numbers); time-outs bootstrap online as they do offline (`timeout_is_terminal=True` does
    what the code does); DT's timestep embedding stays, ODT leaves it out. Sizes are for a CPU: width 64, 2 layers, K 5.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or OnlineDT)


class OnlineDT(SequenceAlgorithm):
    """The algorithm of `OnlineDTConfig`.

    Attributes:
        env_steps: environment steps collected so far (saved).
        collected_episodes: their episodes (saved).
        rounds: rounds of collection and updates begun (saved).
        collected_return: mean raw return of the last round's episodes (saved).
        replay: the trajectories that online updates draw from (saved); None while pretraining.
    """

    config: OnlineConfig

    @classmethod
    def get_default_config(cls) -> OnlineDTConfig:
        """Returns an `OnlineDTConfig`."""
        return OnlineDTConfig(algo_class=cls)

    def setup(self, config: Any) -> None:
        """Builds everything, and takes over the weights of the policy to start from."""
        self.env_steps = 0
        self.collected_episodes = 0
        self.rounds = 0
        self.collected_return: float | None = None
        self.replay: TrajectoryReplay | None = None
        super().setup(config)
        if self.config.env is None:
            raise UserError("there is no environment to finetune in; set environment.env in the config")
        if self.config.start_from is not None:
            self._take_over(self.config.start_from)
            # From here on a checkpoint needs nothing but itself.
            self.config = self.config.copy(copy_frozen=False)
            self.config.start_from = None
            self.config.freeze()

    def _take_over(self, path: str) -> None:
        weights = load_model(path).state_dict()
        state = self.learner_group.get_weights(module_ids=[DEFAULT_MODULE_ID])
        module = state[DEFAULT_MODULE_ID]
        for prefix in ("model", "target_model"):  # there are targets only beside a critic
            taken = {f"{prefix}.{name}": value.numpy() for name, value in weights.items()}
            module.update({name: value for name, value in taken.items() if name in module})
        self.learner_group.set_weights(state)

    @property
    def online(self) -> bool:
        """Whether pretraining is over."""
        return self.gradient_steps >= self.config.pretrain_steps

    @property
    def done(self) -> bool:
        """Whether the run has collected all of its environment steps and learned from them."""
        return self.online and self.env_steps >= self.config.env_steps and self._updates_left <= 0

    @property
    def _updates_left(self) -> int:
        """Updates of the current round that are still to be taken (an interrupt may leave some)."""
        due = self.config.pretrain_steps + self.rounds * self.config.updates_per_iteration
        return due - self.gradient_steps

    def training_step(self) -> None:
        """Pretrains for some steps, or collects whole episodes and takes one round of updates."""
        if self.done:
            return
        if not self.online:
            left = self.config.pretrain_steps - self.gradient_steps
            iterators = self.offline_data.iterators(self.config.num_learners)
            self._update(iterators, min(self.config.gradient_steps_per_iteration, left))
            return
        if self.replay is None:
            self.replay = self._new_replay()
            self.replay.fill(self.offline_data.store)
        if self._updates_left <= 0:
            self._collect(self.replay)
        iterators = self.offline_data.iterators(self.config.num_learners, self.replay.store)
        self._update(iterators, self._updates_left)

    def _new_replay(self) -> TrajectoryReplay:
        spec, config = self.policy_spec, self.config
        return TrajectoryReplay(
            self.offline_data.full.info,
            spec.normaliser,
            capacity=config.replay_capacity_trajectories,
            capacity_steps=config.replay_capacity_steps,
        )

    def _collect(self, replay: TrajectoryReplay) -> None:
        """Runs whole episodes until enough steps are collected; each is a function of the weights and its number."""
        config, runners = self.config, self.env_runner_group
        if runners.num_remote_env_runners() == 0:
            runners.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
            call = Collect()
        else:
            call = Collect(ray.put(self.policy_state()))
        at_once = max(1, config.num_env_runners) * config.num_envs_per_env_runner
        target = config.rollout_target()
        collected: list[EpisodeRecord] = []
        while sum(episode.length for episode in collected) < config.env_steps_per_iteration:
            first = self.collected_episodes + len(collected)
            slots = [
                Slot(target, 1, derive_seed(config.seed or 0, "collect", first + j) % 2**31)
                for j in range(at_once)
            ]
            collected += run_on_runners(self, runners, slots, call).episodes
        for episode in collected:
            trajectory = episode.trajectory
            assert trajectory is not None
            if config.timeout_is_terminal:
                trajectory = replace(trajectory, terminated=True)
            replay.add([trajectory])
        self.env_steps += sum(episode.length for episode in collected)
        self.collected_episodes += len(collected)
        self.rounds += 1
        self.collected_return = sum(episode.episode_return for episode in collected) / len(collected)

    def report(self) -> dict[str, Any]:
        """Returns where the finetuning stands: phase, environment steps, episodes, replay, updates to data."""
        replay = self.replay
        updates = max(0, self.gradient_steps - self.config.pretrain_steps)
        return {
            "phase": "online" if self.rounds > 0 else "pretraining",
            ENV_STEPS: self.env_steps,
            _EPISODES: self.collected_episodes,
            "collected_return": self.collected_return,
            "update_to_data": updates / self.env_steps if self.env_steps else None,
            "replay_episodes": 0 if replay is None else len(replay),
            "replay_steps": 0 if replay is None else replay.num_steps,
        }

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Writes RLlib's checkpoint, and the replay beside it: RLlib's own leaves replays out."""
        folder: str = super().save_to_path(path, **kwargs)
        if self.replay is not None:
            self.replay.save(Path(folder) / _REPLAY)
        return folder

    def restore_from_path(self, path: Any, *, component: str | None = None, **kwargs: Any) -> None:
        """Restores RLlib's checkpoint and the replay.

        Raises:
            UserError: the replay is missing or truncated.
        """
        super().restore_from_path(path, component=component, **kwargs)
        if component is not None:
            return
        self.replay = None
        if self.rounds > 0:
            self.replay = self._new_replay()
            self.replay.load(Path(path) / _REPLAY)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adds the counters of collection."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {**super().get_state(*args, **kwargs), **counters}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores RLlib's state and the counters."""
        super().set_state(state)
        for name in _COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))
