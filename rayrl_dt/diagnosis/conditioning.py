"""What a policy does with its target: how far the action moves with it, and how it is used up in an episode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.rollout import EpisodeRecord, action_draws, assign_slots, run_slots
from rayrl_dt.evaluation.targets import ReturnRange
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import evaluated_in
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector
from rayrl_dt.seeding import derive_seed
from rayrl_dt.types import Window

__all__ = ["OFFSETS", "Course", "Sensitivity", "return_courses", "sensitivity"]

OFFSETS = tuple(float(value) for value in np.linspace(-0.5, 0.5, 9))
"""How far `sensitivity` moves the targets, in ranges of the data's returns."""


@dataclass(frozen=True)
class Sensitivity:
    """How far the action moves when the target does, at several distances from the data's own returns.

    A value of 1 means: at this rate, moving every return-to-go of the window by one range of returns would move the
    action from one end of its range to the other. A policy that ignores its target has 0 everywhere.

    Attributes:
        offsets: raw returns that were added to all returns-to-go of the windows.
        values: mean over windows of |action(offset + delta) - action(offset - delta)| in action ranges, per
            2 delta in ranges of returns. The distance of two actions is the mean over dimensions of |difference| / 2 in
            model units (where actions reach from -1 to 1), or the total variation distance of discrete actions.
        delta: raw return.
        span: the range of returns: from the 5th to the 95th percentile of the data's episodes (raw).
        windows: windows averaged over.
    """

    offsets: tuple[float, ...]
    values: tuple[float, ...]
    delta: float
    span: float
    windows: int

    @property
    def at_data(self) -> float:
        """The value where the windows keep the data's own returns (offset 0, interpolated if it is not there)."""
        return float(np.interp(0.0, self.offsets, self.values))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True)
class Course:
    """The return that is left to achieve, from step to step, for one target. All returns are raw.

    Under the target rule "decrement" this is the return-to-go that the policy is shown.

    Attributes:
        target: the return asked for.
        remaining: `(T+1,)` mean over episodes of the target minus the rewards so far, before the first step, after
            it, and so on until the longest episode ends; an episode that ended keeps its last value. So the last one
            is the target minus the mean return: 0 is a target used up exactly, more is one not reached.
        left: the same at the end of each episode.
        lengths: steps of each episode.
    """

    target: float
    remaining: tuple[float, ...]
    left: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def left_mean(self) -> float:
        """Mean over episodes of what is left at their end."""
        return float(np.mean(self.left))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def sensitivity(
    model: SequenceModel,
    batches: Iterable[Window[Tensor]],
    returns: ReturnRange,
    *,
    offsets: Sequence[float] = OFFSETS,
    delta: float = 0.05,
) -> Sensitivity:
    """Measure how the action of the last step depends on the target, by central differences on windows of data.

    Args:
        model: the policy network; put into eval mode.
        batches: raw windows.
        returns: where the data's returns lie; the 5th and 95th percentile are the range that everything is told in.
        offsets: ascending, in ranges of returns.
        delta: in ranges of returns.

    Raises:
        UserError: the data's returns have no range.
    """
    span = returns.p95 - returns.p5
    if not span > 0:
        raise UserError(
            f"the data's returns have no range (5th and 95th percentile are {returns.p5:g}), so a sensitivity has no "
            "unit; choose data whose episodes differ"
        )
    model.eval()
    device = model.head.weight.device
    totals, count = np.zeros(len(offsets)), 0
    for batch in batches:
        window = batch.to_torch(device)
        count += window.batch_size
        for index, offset in enumerate(offsets):
            low, high = (_outputs(model, window, (offset + side) * span) for side in (-delta, delta))
            totals[index] += float(model.spec.head.distance(low, high).sum())
    return Sensitivity(
        offsets=tuple(float(offset * span) for offset in offsets),
        values=tuple((totals / count / (2 * delta)).tolist()),
        delta=delta * span,
        span=span,
        windows=count,
    )


def return_courses(
    model: SequenceModel,
    targets: Sequence[float],
    *,
    env: str | RecordedEnv | None = None,
    episodes_per_target: int = 5,
    max_slots: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Course, ...]:
    """Roll the policy out and return how each target is used up, in the order of `targets`.

    These are the episodes that `evaluate_model` runs with the same arguments.

    Args:
        model: the policy network.
        targets: raw returns, each once.
        env: overrides the environment that the policy knows.
        episodes_per_target: fixed quota, at least 1; all targets start from the same states.
        max_slots: environments at a time (at least one per target).
        seed: of environments and sampled actions.
        progress: called with the number of episodes that just ended.

    Raises:
        UserError: no environment is known, or its spaces differ from the policy's.
    """
    spec = model.spec
    slots = assign_slots(
        targets, episodes_per_target, max_slots=max_slots, seed=derive_seed(seed, "evaluation")
    )
    vector = evaluated_in(spec, env).make_vector(
        len(slots),
        spaces=(spec.observation_space, spec.action_space),
        flattening=spec.flattening,
    )
    try:
        sample = action_draws(spec, slots)
        collector = Collector(vector, VectorActor(model, len(slots), sample=sample), record=True)
        episodes = run_slots(collector, slots, progress=progress).episodes
    finally:
        vector.close()
    groups = [[episode for episode in episodes if episode.target == target] for target in targets]
    return tuple(_course(target, group) for target, group in zip(targets, groups, strict=True))


def _course(target: float, episodes: Sequence[EpisodeRecord]) -> Course:
    steps = max(episode.length for episode in episodes)
    remaining = np.empty((len(episodes), steps + 1))
    for row, episode in zip(remaining, episodes, strict=True):
        assert episode.trajectory is not None
        row[0] = target
        row[1:] = target - episode.episode_return
        row[1 : episode.length + 1] = target - np.cumsum(episode.trajectory.rewards, dtype=np.float64)
    return Course(
        target=float(target),
        remaining=tuple(remaining.mean(axis=0).tolist()),
        left=tuple(remaining[:, -1].tolist()),
        lengths=tuple(episode.length for episode in episodes),
    )


def _outputs(model: SequenceModel, window: Window[Tensor], shift: float) -> Tensor:
    """Head outputs `(B, O)` of the last step with every return-to-go moved by `shift` (raw), guided as it acts."""
    with torch.no_grad():
        return model.guided_for(window, window.returns_to_go + shift, last_only=True)[:, -1]
