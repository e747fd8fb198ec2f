"""Stepping N environments with one actor, and handing out whole episodes.

Training rollouts and evaluation share this loop. Gymnasium's vector environments reset a finished slot on the
*next* step (`AutoresetMode.NEXT_STEP`): that step ignores the action and returns the first observation with
reward 0. It is not a transition, and is never counted or recorded as one.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt.envs.vector import rest
from rayrl_dt.errors import EnvironmentFailed, UserError
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.types import Trajectory, scalar_rewards

__all__ = ["LONGEST_EPISODE", "Collector", "FinishedEpisode", "ask", "endless"]

# Steps after which an episode is taken for one that never ends, where the environment itself allows no longer ones.
LONGEST_EPISODE = 1_000_000
_LONGEST_REASON = 300
# Of what Python says where an environment follows Gym as it was before version 0.26.
_OLD_API = ("values to unpack", "argument 'seed'", "argument 'options'")
_NEW_API = (
    "mend the environment: as Gymnasium has it, reset takes seed and options and returns (observation, info), and step "
    "returns (observation, reward, terminated, truncated, info)"
)
# Where errors of environments come up in code that is not the environment's.
_OF_OTHERS = (
    *{Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")},
    Path(__file__).parents[1],
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that just ended.

    Attributes:
        slot: the vector environment's slot it ran in.
        target: the target return it was asked for (raw).
        episode_return: raw undiscounted return.
        length: steps.
        trajectory: the steps, if the collector records them.
    """

    slot: int
    target: float
    episode_return: float
    length: int
    trajectory: Trajectory | None


class Collector:
    """Runs an actor in a vector environment, one vector step at a time.

    Args:
        env: vector environment with NEXT_STEP autoreset (Gymnasium's default).
        actor: acts for as many slots as the environment has.
        record: keep the steps of running episodes, so that finished ones come as trajectories.

    Attributes:
        targets: `(N,)` raw target return given to episodes that start; assign to change.
        active: `(N,)` bool, the slots that are acted for; the others idle and count for nothing.
        env_steps: transitions so far in active slots.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], actor: VectorActor, *, record: bool) -> None:
        mode = env.metadata.get("autoreset_mode", gym.vector.AutoresetMode.NEXT_STEP)
        if mode != gym.vector.AutoresetMode.NEXT_STEP:
            raise UserError(f"vector environments must reset on the next step; this one has mode {mode}")
        slots = env.num_envs
        self.env = env
        self.actor = actor
        self.record = record
        self.targets = np.zeros(slots, np.float64)
        self.active = np.ones(slots, bool)
        self.env_steps = 0
        self._observations: Array = np.zeros(0)
        self._rewards = np.zeros(slots, np.float64)
        self._starting = np.ones(slots, bool)
        self._resetting = np.zeros(slots, bool)
        self._asked = np.zeros(slots, np.float64)
        self._return = np.zeros(slots, np.float64)
        self._length = np.zeros(slots, np.int64)
        self._first = np.zeros(slots, np.int64)  # index into the history of each slot's first step
        self._history: list[tuple[Array, Array, Array]] = []
        self._longest = max(LONGEST_EPISODE, getattr(self._spec(), "max_episode_steps", None) or 0)

    def reset(self, *, seed: int | list[int | None] | None = None) -> None:
        """Start every slot afresh; running episodes are dropped.

        Raises:
            UserError: the environment returned a NaN or infinite observation.
        """
        # Gymnasium's base class declares less than its vector environments take: a seed per slot.
        observations, _ = ask(self._env_name, self.env.reset, seed=seed)
        self._observations = np.array(observations)
        if not np.isfinite(self._observations[self.active]).all():
            raise self._not_finite()
        self._starting[:] = True
        self._resetting[:] = False
        self._history.clear()

    def rest(self, slot: int) -> None:
        """Leave a slot idle until the next reset; where environments step in turn, its own steps no more."""
        self.active[slot] = False
        rest(self.env, slot)

    def step(self) -> list[FinishedEpisode]:
        """Act once in every slot and return the episodes that ended.

        Raises:
            UserError: the environment returned a NaN or infinite observation or reward, or an episode does not end
                (`LONGEST_EPISODE`).
        """
        starting, live = self._starting, ~self._resetting
        self._asked[starting] = self.targets[starting]
        self._return[starting] = 0.0
        self._length[starting] = 0
        self._first[starting] = len(self._history)
        acting = live & self.active
        actions = self.actor.act(self._observations, self._rewards, starting, self.targets, acting)
        observations, rewards, terminated, truncated, _ = ask(self._env_name, self.env.step, actions)
        # Vector environments may hand out the same buffers at every step.
        observations = np.array(observations)
        rewards = np.array(scalar_rewards(rewards, self.env.num_envs), np.float64)
        counted = self.active
        if not (np.isfinite(rewards[counted]).all() and np.isfinite(observations[counted]).all()):
            raise self._not_finite()
        if self.record:
            self._history.append((self._observations, np.array(actions), rewards))
        self._return[live] += rewards[live]
        self._length += live
        self.env_steps += int(acting.sum())
        ended = (terminated | truncated) & live
        if self._length.max() >= self._longest and (self._length[acting & ~ended] >= self._longest).any():
            raise endless(self._env_name(), self._longest)
        self._observations = observations
        finished = [
            FinishedEpisode(
                slot=slot,
                target=float(self._asked[slot]),
                episode_return=float(self._return[slot]),
                length=int(self._length[slot]),
                trajectory=self._cut(slot, bool(terminated[slot])) if self.record else None,
            )
            for slot in np.flatnonzero(ended & self.active).tolist()
        ]
        self._rewards, self._starting, self._resetting = rewards, self._resetting, ended
        if self.record:
            self._forget()
        return finished

    def _not_finite(self) -> UserError:
        return UserError(
            f"environment {self._env_name()} returned NaN or infinite values; check its physics and its reward"
        )

    def _env_name(self) -> str:
        """Return the environment's id where it has one."""
        spec = self._spec()
        return str(self.env) if spec is None else str(spec.id)

    def _spec(self) -> Any:
        """Return the environment's specification or None; vector environments made by hand know only their parts'."""
        single = getattr(self.env, "envs", [None])[0]
        return self.env.spec or getattr(single, "spec", None)

    def _cut(self, slot: int, terminated: bool) -> Trajectory:
        """Return the steps of the slot's episode, which ended just now."""
        steps = self._history[self._first[slot] :]
        return Trajectory(
            observations=np.stack([step[0][slot] for step in steps] + [self._observations[slot]]),
            actions=np.stack([step[1][slot] for step in steps]),
            rewards=np.array([step[2][slot] for step in steps], np.float32),
            terminated=terminated,
        )

    def _forget(self) -> None:
        """Drop the history before the oldest running episode, now and then."""
        running = ~(self._resetting | self._starting)
        oldest = int(self._first[running].min()) if running.any() else len(self._history)
        if oldest >= 1024:
            del self._history[:oldest]
            self._first -= oldest


def ask(name: Callable[[], str], method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a method of an environment, which may be anybody's code; what it raises is told in one line.

    Args:
        name: says what to call the environment.
        method: of it.
        arguments: of the method.
        options: of the method.

    Raises:
        EnvironmentFailed: it raised something.
    """
    try:
        return method(*arguments, **options)
    except UserError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:_LONGEST_REASON]
        old = any(sign in what for sign in _OLD_API)
        remedy = _NEW_API if old else "mend the environment"
        raise EnvironmentFailed(
            f"environment {name()} raised {type(error).__name__}: {what}{_where(error)}; {remedy}"
        ) from error


def endless(name: str, steps: int) -> UserError:
    """Return what to say of an environment whose episodes do not end."""
    return UserError(
        f"environment {name} has run {steps:,} steps and no episode has ended; give it a time limit: "
        "environment.env_config {max_episode_steps: N}, or gymnasium.wrappers.TimeLimit where it is made"
    )


def _where(error: Exception) -> str:
    """Return in which line of whose code an error came up: the innermost that is neither ours nor of a library."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    # Compiled code has no absolute path.
    own = [
        (file, line)
        for file, line in frames
        if file.is_absolute() and not any(file.is_relative_to(each) for each in _OF_OTHERS)
    ]
    return f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
