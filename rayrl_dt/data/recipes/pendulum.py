"""Pendulum-v1 swung up by energy shaping, at graded skill, with its dynamics vectorized over all episodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from rayrl_dt import envs, seeding
from rayrl_dt.data.recipes.behavior import GradedBehavior
from rayrl_dt.data.recipes.rollouts import Progress
from rayrl_dt.types import RawEpisode

__all__ = ["PendulumBatch", "play", "swing_up"]

Array = np.ndarray[Any, Any]
STEPS = 200


class PendulumBatch:
    """E pendulums in lockstep, with the very arithmetic of Gymnasium's `PendulumEnv` (g=10, m=l=1, dt=0.05).

    Args:
        states: `(E, 2)` float64 angles (0 is upright) and angular velocities.
    """

    def __init__(self, states: Array) -> None:
        self.angle, self.velocity = states[:, 0].copy(), states[:, 1].copy()

    def observations(self) -> Array:
        """Return `(E, 3)` float32: cosine, sine, angular velocity."""
        return np.stack([np.cos(self.angle), np.sin(self.angle), self.velocity], axis=1).astype(np.float32)

    def step(self, actions: Array) -> Array:
        """Apply `(E, 1)` float32 torques; return `(E,)` rewards."""
        torque = np.clip(actions, -2.0, 2.0)[:, 0]
        angle = ((self.angle + np.pi) % (2 * np.pi)) - np.pi
        costs = angle**2 + 0.1 * self.velocity**2 + 0.001 * (torque**2)
        velocity = self.velocity + (3 * 10.0 / 2.0 * np.sin(self.angle) + 3.0 * torque) * 0.05
        self.velocity = np.clip(velocity, -8, 8)
        self.angle = self.angle + self.velocity * 0.05
        rewards: Array = -costs
        return rewards


def swing_up(observations: Array) -> Array:
    """Pump energy until upright is in reach, then balances: `(E, 3)` observations to `(E, 1)` torques."""
    cosine, sine, velocity = observations.T.astype(np.float64)
    # Per unit of the rod's inertia (1/3): kinetic + potential energy, 0 when resting upright.
    energy = 0.5 * velocity**2 - 15.0 * (1.0 - cosine)
    pump = -2.0 * np.sign(velocity + 1e-9) * np.sign(energy)
    balance = -(9.0 * np.arctan2(sine, cosine) + 2.4 * velocity)
    reachable = (cosine > 0.8) & (np.abs(velocity) < 4.0)
    torque: Array = np.where(reachable, balance, pump)[:, None]
    return torque


def play(*, episodes: int, seed: int, progress: Progress | None = None) -> Iterator[RawEpisode]:
    """Yield episodes of 200 steps."""
    rng = seeding.numpy_generator(seed, "recipe/pendulum")
    env = envs.make("Pendulum-v1")
    action_space = env.action_space
    assert isinstance(action_space, gym.spaces.Box)
    pendulums = PendulumBatch(rng.uniform([-np.pi, -1.0], [np.pi, 1.0], size=(episodes, 2)))
    behavior = GradedBehavior(swing_up, action_space, np.arange(episodes), rng, hold=1, least_authority=0.0)
    observations, actions, rewards = [pendulums.observations()], [], []
    for _ in range(STEPS):
        actions.append(behavior.act(observations[-1]))
        rewards.append(pendulums.step(actions[-1]))
        observations.append(pendulums.observations())
    all_observations = np.stack(observations, axis=1)
    all_actions = np.stack(actions, axis=1)
    all_rewards = np.stack(rewards, axis=1).astype(np.float32)
    for i in range(episodes):
        yield RawEpisode(all_observations[i], all_actions[i], all_rewards[i], terminated=False)
        if progress is not None:
            progress(i + 1, episodes)
