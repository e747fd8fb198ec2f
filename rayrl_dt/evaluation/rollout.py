"""Evaluating a policy on many targets in one vectorized run, with a fixed quota of episodes per slot.

Counting whichever episodes finish first would favor short ones. Here each slot of the vector environment
holds one target and runs exactly its quota; a slot that is done idles, takes no steps, and is left out of the forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.collector import Collector
from rayrl_dt.seeding import derive_seed, torch_generator
from rayrl_dt.types import Trajectory

__all__ = [
    "EpisodeRecord",
    "Rollouts",
    "RolloutsStopped",
    "Slot",
    "action_draws",
    "assign_slots",
    "run_slots",
]


@dataclass(frozen=True)
class Slot:
    """What one slot of the vector environment has to do.

    Attributes:
        target: raw target return.
        episodes: how many episodes to run.
        seed: seed of the slot's first reset; later episodes continue its stream.
    """

    target: float
    episodes: int
    seed: int


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode that was run.

    Attributes:
        target: return that was asked for (raw).
        episode_return: return that was achieved (raw).
        length: in steps.
        trajectory: its steps, if the collector records them.
    """

    target: float
    episode_return: float
    length: int
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Rollouts:
    """Evaluated episodes and what they cost.

    Attributes:
        episodes: in the order of the slots, so that the result does not depend on timing.
        env_steps: transitions.
        seconds: wall time.
    """

    episodes: tuple[EpisodeRecord, ...]
    env_steps: int
    seconds: float

    def __repr__(self) -> str:
        return f"Rollouts({len(self.episodes)} episodes, {self.env_steps} steps, {self.seconds:.1f} s)"


class RolloutsStopped(Exception):
    """Rollouts ended before they were complete, because someone asked for it; nothing of them is kept."""


def assign_slots(
    targets: Sequence[float], episodes_per_target: int, *, max_slots: int, seed: int
) -> list[Slot]:
    """Divide the episodes among slots: as many slots per target as fit, quotas as equal as they can be.

    Args:
        targets: raw target returns; each gets at least one slot, even past `max_slots`.
        episodes_per_target: at least 1.
        max_slots: slots wanted in total.
        seed: slot seeds derive from it. The j-th slots of all targets start from the same state (common
            random numbers make the targets comparable).
    """
    share = max(1, min(episodes_per_target, max_slots // max(1, len(targets))))
    quota, extra = divmod(episodes_per_target, share)
    return [
        Slot(
            target=float(target),
            episodes=quota + (j < extra),
            seed=derive_seed(seed, "evaluation", j) % 2**31,
        )
        for target in targets
        for j in range(share)
    ]


def action_draws(spec: PolicySpec, slots: Sequence[Slot]) -> torch.Generator | None:
    """Return what the actions of an evaluation are drawn with, new each time; None for a policy that draws none."""
    return torch_generator(slots[0].seed, "actions") if spec.samples_actions else None


def run_slots(
    collector: Collector,
    slots: Sequence[Slot],
    *,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Rollouts:
    """Run every slot's quota.

    Args:
        collector: has as many slots as `slots`; it is reset.
        slots: from `assign_slots`.
        progress: called with the number of episodes that just ended.
        stop: called before every step; True ends the rollouts.

    Raises:
        UserError: the environment returned NaN, or an episode does not end.
        RolloutsStopped: `stop` asked for it.
    """
    begin = time.perf_counter()
    steps_before = collector.env_steps
    left = np.array([slot.episodes for slot in slots])
    records: list[list[EpisodeRecord]] = [[] for _ in slots]
    collector.targets = np.array([slot.target for slot in slots])
    collector.active = left > 0
    collector.reset(seed=[slot.seed for slot in slots])
    for slot in np.flatnonzero(left == 0).tolist():
        collector.rest(slot)
    while collector.active.any():
        if stop is not None and stop():
            raise RolloutsStopped
        for episode in collector.step():
            records[episode.slot].append(
                EpisodeRecord(episode.target, episode.episode_return, episode.length, episode.trajectory)
            )
            left[episode.slot] -= 1
            if left[episode.slot] == 0:
                collector.rest(episode.slot)
            if progress is not None:
                progress(1)
    return Rollouts(
        episodes=tuple(record for slot in records for record in slot),
        env_steps=collector.env_steps - steps_before,
        seconds=time.perf_counter() - begin,
    )
