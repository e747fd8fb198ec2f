"""The recipe `trained`: RLlib's SAC on any environment with continuous actions, exported as data.

Three data sets result, like the families of D4RL: `replay`, every training episode in the order of
collection; `medium`, stochastic rollouts of a checkpoint well below the best; `best`, those of the best one.

RLlib's SAC runs at some ten to twenty steps per second on a CPU core, half of it spent on gathering batches.
Where hours matter, `overrides={"env_runners": {"rollout_fragment_length": 4}}` updates once every four steps.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.tune.registry import register_env

from rayrl_dt import envs
from rayrl_dt.algorithms.session import start_ray
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.recipes.scripted import AUTHOR, as_float32, requirements
from rayrl_dt.data.scaling import scale_of, warn_if_far
from rayrl_dt.errors import UserError
from rayrl_dt.policy.collector import LONGEST_EPISODE, ask, endless
from rayrl_dt.seeding import derive_seed, numpy_generator
from rayrl_dt.types import RawEpisode

__all__ = ["RecordEpisodes", "make"]

Progress = Callable[[int, int], None]

_ENV_NAME = "rayrl_dt-recorded"
_CHECKPOINTS = 50
_RECENT = 5  # training episodes that score a checkpoint
_MEDIUM = 0.4
_ROLLOUTS = 50
_AT_ONCE = 5
_REFERENCE_EPISODES = 20


class RecordEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps every whole episode as the environment saw it: actions in its own units, after any rescaling.

    RLlib's episodes hold what the policy said, which is not what the environment received.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.episodes: list[RawEpisode] = []
        self._observations: list[Any] = []
        self._actions: list[Any] = []
        self._rewards: list[float] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; an unfinished one is dropped."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._observations, self._actions, self._rewards = [np.array(observation, np.float32)], [], []
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Record the step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observations.append(np.array(observation, np.float32))
        self._actions.append(np.array(action, np.float32))
        self._rewards.append(float(reward))
        if terminated or truncated:
            episode = RawEpisode(
                observations=np.stack(self._observations).astype(np.float32),
                actions=np.stack(self._actions),
                rewards=np.array(self._rewards, np.float32),
                terminated=bool(terminated),
            )
            self.episodes.append(episode)
        return observation, reward, terminated, truncated, info

    def take(self) -> list[RawEpisode]:
        """Return the episodes since the last call, and forget them."""
        taken, self.episodes = self.episodes, []
        return taken


def make(
    *,
    dataset_id: str,
    seed: int,
    episodes: int | None,
    overwrite: bool,
    progress: Progress | None,
    env: str,
    steps: int = 100_000,
    overrides: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Train SAC in this process and write the data sets `replay`, `medium` and `best`.

    Unlike the scripted recipes this one is not repeatable bit for bit: RLlib's training is not. SAC learns from the
    environment's own rewards, and a line of the log says so where they are of an unusual size.

    Args:
        dataset_id: of the replay data, ending in `replay-vN`; the others take its place with their own name.
        seed: of training and environment.
        episodes: how many rollouts of each checkpoint; 50 if None.
        overwrite: replace data sets of these ids.
        progress: called with (environment steps, all environment steps), then with (rollouts, all rollouts).
        env: a name that `rayrl_dt.envs.make` knows.
        steps: environment steps to train for.
        overrides: further settings of `SACConfig`, by builder section.

    Returns:
        The id of the replay data.

    Raises:
        UserError: the environment's actions are not continuous, an id is taken, or `steps` end no episode.
    """
    ids = _ids(dataset_id, overwrite=overwrite)
    probe = envs.make(env)
    if not isinstance(probe.action_space, gym.spaces.Box):
        raise UserError(
            f"{env} has actions {probe.action_space}; recipe trained needs a continuous environment"
        )
    rewards = _random_rewards(env, probe, seed)
    warn_if_far(f"SAC's reward scale on {env}", 1.0, scale_of(rewards))
    start_ray()
    algo = _config(env, seed, steps, overrides or {}).build_algo()
    try:
        recorder = _recorder(algo)
        checkpoints = _train(algo, recorder, steps, progress)
        replay = recorder.take()
        medium, best = _choose(checkpoints)
        count = _ROLLOUTS if episodes is None else episodes
        of_medium, of_best = _rollouts(algo, recorder, (medium, best), count, progress)
        data = {
            "replay": (replay, f"all training episodes of {steps} environment steps, in order"),
            "medium": (of_medium, f"rollouts at {medium.steps} steps"),
            "best": (of_best, f"rollouts at {best.steps} steps, the best"),
        }
    finally:
        algo.stop()
    low = float(np.mean([each.sum() for each in rewards]))
    high = _mean_return(data["best"][0])
    for kind, (kept, what) in data.items():
        minari_io.write(
            ids[kind],
            kept,
            observation_space=as_float32(probe.observation_space),
            action_space=probe.action_space,
            env_spec=probe.spec,
            author=AUTHOR,
            algorithm_name="SAC (RLlib)",
            description=(
                f"{env}: {what}. SAC, seed {seed}, stochastic actions. ref_min_score is the mean return of "
                f"{_REFERENCE_EPISODES} uniformly random episodes, ref_max_score that of the best rollouts."
            ),
            requirements=requirements("gymnasium", "ray"),
            # Training that never beat chance gives no scale.
            ref_min_score=low if low < high else None,
            ref_max_score=high if low < high else None,
            overwrite=overwrite,
        )
    probe.close()
    return ids["replay"]


@dataclass(frozen=True)
class _Checkpoint:
    """Policy weights, when they were taken, and the mean raw return of the training episodes just before."""

    steps: int
    score: float
    state: Any


def _ids(replay_id: str, *, overwrite: bool) -> dict[str, str]:
    if re.search(r"replay-v\d+$", replay_id) is None:
        raise UserError(f"{replay_id!r} is the id of replay data; let it end in replay-v0")
    ids = {kind: re.sub(r"replay(-v\d+)$", rf"{kind}\1", replay_id) for kind in ("replay", "medium", "best")}
    taken = [dataset_id for dataset_id in ids.values() if minari_io.exists(dataset_id)]
    if taken and not overwrite:
        raise UserError(f"{', '.join(taken)} exist already; overwrite them, or give another dataset_id")
    return ids


def _config(env: str, seed: int, steps: int, overrides: dict[str, dict[str, Any]]) -> SACConfig:
    """Return the settings of the SAC paper (Haarnoja et al. 2018, v2), which suit MuJoCo."""
    register_env(_ENV_NAME, lambda context: RecordEpisodes(envs.make(env)))
    config = (
        SACConfig()
        .environment(_ENV_NAME)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1)
        .learners(num_learners=0)
        .training(
            actor_lr=3e-4,
            critic_lr=3e-4,
            alpha_lr=3e-4,
            gamma=0.99,
            tau=0.005,
            train_batch_size_per_learner=256,
            num_steps_sampled_before_learning_starts=min(5_000, steps // 10),
            # The prioritized buffer, RLlib's default, is several times slower.
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": steps},
        )
        .reporting(
            min_time_s_per_iteration=0,
            min_sample_timesteps_per_iteration=max(1, steps // _CHECKPOINTS),
        )
        .debugging(seed=derive_seed(seed, "recipe/trained") % 2**31, log_level="ERROR")
    )
    for section, settings in overrides.items():
        builder = getattr(config, section, None)
        if not callable(builder):
            raise UserError(f"SACConfig has no section {section!r}; use for instance training or env_runners")
        builder(**settings)
    return config


def _recorder(algo: SAC) -> RecordEpisodes:
    """Find the recorder in the local env runner's only environment."""
    env = algo.env_runner.env.unwrapped.envs[0]
    while not isinstance(env, RecordEpisodes):
        env = env.env
    return env


def _train(algo: SAC, recorder: RecordEpisodes, steps: int, progress: Progress | None) -> list[_Checkpoint]:
    # RLlib leaves this generator unseeded.
    algo.local_replay_buffer.rng = numpy_generator(algo.config.seed, "recipe/trained/replay")
    checkpoints = []
    done = 0
    while done < steps:
        result = algo.train()
        done = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
        if progress is not None:
            progress(min(done, steps), steps)
        if recorder.episodes:
            score = _mean_return(recorder.episodes[-_RECENT:])
            state = copy.deepcopy(algo.env_runner.module.get_state(inference_only=True))
            checkpoints.append(_Checkpoint(done, score, state))
    if not checkpoints:
        raise UserError(f"no episode ended within {steps} steps; train for more steps")
    return checkpoints


def _choose(checkpoints: list[_Checkpoint]) -> tuple[_Checkpoint, _Checkpoint]:
    """Return the medium and the best checkpoint.

    Medium is the one before the best whose score is nearest to `_MEDIUM` of the way from the first to the
    best: a share of the way and not of the return, because returns may be negative.
    """
    best = max(range(len(checkpoints)), key=lambda i: checkpoints[i].score)
    low, high = checkpoints[0].score, checkpoints[best].score
    wanted = low + _MEDIUM * (high - low)
    medium = min(checkpoints[: best + 1], key=lambda checkpoint: abs(checkpoint.score - wanted))
    return medium, checkpoints[best]


def _rollouts(
    algo: SAC,
    recorder: RecordEpisodes,
    checkpoints: Sequence[_Checkpoint],
    episodes: int,
    progress: Progress | None,
) -> list[list[RawEpisode]]:
    """Stochastic episodes of each checkpoint, through RLlib's own way of acting."""
    played: list[list[RawEpisode]] = []
    recorder.take()
    for checkpoint in checkpoints:
        algo.env_runner.module.set_state(checkpoint.state)
        played.append([])
        while len(played[-1]) < episodes:
            algo.env_runner.sample(num_episodes=min(_AT_ONCE, episodes - len(played[-1])), explore=True)
            played[-1] += recorder.take()
            if progress is not None:
                progress(sum(map(len, played)), episodes * len(checkpoints))
    return played


def _random_rewards(name: str, env: gym.Env[Any, Any], seed: int) -> list[np.ndarray[Any, Any]]:
    """Return the rewards of episodes of uniformly random actions.

    Raises:
        UserError: the environment, of that name, raised something, or an episode does not end.
    """
    episodes = []
    env.action_space.seed(derive_seed(seed, "recipe/trained/random") % 2**31)
    for number in range(_REFERENCE_EPISODES):
        ask(lambda: name, env.reset, seed=derive_seed(seed, "recipe/reset", number) % 2**31)
        over = False
        rewards: list[float] = []
        while not over:
            if len(rewards) == LONGEST_EPISODE:
                raise endless(name, LONGEST_EPISODE)
            _, reward, terminated, truncated, _ = ask(lambda: name, env.step, env.action_space.sample())
            rewards.append(float(reward))
            over = terminated or truncated
        episodes.append(np.array(rewards))
    return episodes


def _mean_return(episodes: list[RawEpisode]) -> float:
    return float(np.mean([np.sum(episode.rewards, dtype=np.float64) for episode in episodes]))
