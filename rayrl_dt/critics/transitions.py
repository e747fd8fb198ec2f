"""Logged data as single transitions in model units, for a critic.

Shape legend: N transitions, B batch, S observation dimensions, A action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec

__all__ = ["Transitions", "check_shapes", "transitions_of"]


class Transitions(NamedTuple):
    """Transitions, or a batch of them.

    Observations are normalized and actions in [-1, 1], as the policy sees them; rewards are raw until a critic's
    training scales them.
    """

    pairs: Tensor  # (N, S + A) observation and action
    rewards: Tensor  # (N,)
    following: Tensor  # (N, S) next observations
    terminated: Tensor  # (N,) bool; False at time limits, where the next observation still has a value

    def batch(self, rows: Tensor) -> Transitions:
        """Return the transitions of rows `(B,)`."""
        return Transitions(*(values.index_select(0, rows) for values in self))


def check_shapes(store: TrajectoryStore, spec: PolicySpec) -> None:
    """Check that data can be of the task of a policy with continuous actions.

    Raises:
        UserError: their steps are of other shapes than the policy's.
    """
    expected = (spec.observation_space.shape, (spec.action_size,))
    found = (store.observations.shape[1:], store.actions.shape[1:])
    if found != expected:
        raise UserError(
            f"{store.info.source} has observations and actions of shapes {found}, the policy has {expected}; "
            "name data of the policy's own task with --dataset"
        )


def transitions_of(store: TrajectoryStore, model: SequenceModel) -> Transitions:
    """Copy the transitions of a store into memory, in the units of a policy.

    Args:
        store: raw data; the last step of each episode leads to its final observation.
        model: the policy whose normalizer and action bounds the critic shares.

    Raises:
        UserError: the store's steps are of other shapes than the policy's.
    """
    check_shapes(store, model.spec)
    episodes, offsets = store.locate(np.arange(store.num_steps))
    steps = store.starts[episodes] + offsets
    last = offsets == store.lengths[episodes] - 1
    following = np.array(store.observations[np.where(last, steps, steps + 1)])
    following[last] = store.final_observations[episodes[last]]
    with torch.no_grad():
        observations = model.to_model_observations(torch.from_numpy(np.array(store.observations[steps])))
        actions = model.to_model_actions(torch.from_numpy(np.array(store.actions[steps])))
        return Transitions(
            pairs=torch.cat([observations, actions], dim=-1),
            rewards=torch.from_numpy(np.array(store.rewards[steps], np.float32)),
            following=model.to_model_observations(torch.from_numpy(following)),
            terminated=torch.from_numpy(last & store.terminated[episodes]),
        )
