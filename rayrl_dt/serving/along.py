"""What a policy would do at each step of logged episodes, whose actions it sees as if it had taken them.

Shape legend: E episodes, n their steps in all, A action dimensions (discrete actions have no such axis).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor

__all__ = ["Along", "act_along"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Along:
    """Actions along logged episodes, episode by episode.

    Attributes:
        episodes: `(n,)` numbers in the data.
        steps: `(n,)` within the episode, from 0.
        targets: `(n,)` raw return that the episode was begun with.
        returns_to_go: `(n,)` raw, what was left of it; of a policy that predicts its own, what it predicted.
        actions: `(n, A)` or `(n,)`, the policy's most likely ones, in units of the environment.
        logged: `(n, A)` or `(n,)`, what the data have.
    """

    episodes: Array
    steps: Array
    targets: Array
    returns_to_go: Array
    actions: Array
    logged: Array


def act_along(
    model: SequenceModel,
    store: TrajectoryStore,
    episodes: Array,
    targets: Array,
    *,
    context_length: int | None = None,
    guidance: float | None = None,
) -> Along:
    """Ask a policy at each step of some episodes what it would do, given all that was logged before.

    Rewards and actions of the steps before are those of the data, so each answer is that of one step, and none follows
    from another. With an episode's own return as target the policy is asked what it was trained to answer.

    Args:
        model: the policy network.
        store: the data, of the policy's task.
        episodes: `(E,)` their numbers; one may be asked for several returns.
        targets: `(E,)` raw returns; ignored where the policy predicts its own.
        context_length: steps to act on; None for the policy's own choice.
        guidance: how strongly the policy follows its returns; None for its own choice.

    Raises:
        UserError: an action is NaN or infinite.
    """
    actor = VectorActor(model, len(episodes), context_length=context_length, guidance=guidance)
    lengths, starts = store.lengths[episodes], store.starts[episodes]
    longest = int(lengths.max())
    rewards = np.zeros(len(episodes))
    actions = np.zeros((len(episodes), longest, *model.spec.head.shape), model.spec.action_space.dtype)
    returns_to_go = np.zeros((len(episodes), longest))
    for step in range(longest):
        # An episode that is over waits at its last step.
        rows = starts + np.minimum(step, lengths - 1)
        first = np.full(len(episodes), step == 0)
        actions[:, step] = actor.act(store.observations[rows], rewards, first, targets, active=step < lengths)
        returns_to_go[:, step] = actor.returns_to_go
        actor.took(store.actions[rows])
        rewards = store.rewards[rows].astype(np.float64)
    row, step_of = np.nonzero(np.arange(longest) < lengths[:, None])  # (E, longest) -> (n,), (n,)
    return Along(
        episodes=np.asarray(episodes)[row],
        steps=step_of,
        targets=np.asarray(targets, np.float64)[row],
        returns_to_go=returns_to_go[row, step_of],
        actions=actions[row, step_of],
        logged=store.actions[starts[row] + step_of],
    )
