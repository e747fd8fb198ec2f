"""Transitions of a store: what follows what, and in which units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from builders import build_model

from rayrl_dt.critics.transitions import transitions_of
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
LENGTHS = (1, 2, 7, 4)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [3, 0]])
def test_each_step_leads_to_the_next_observation(make_store: MakeStore, chosen: list[int]) -> None:
    full = make_store(lengths=LENGTHS)
    model, store = build_model(full), full.select(chosen)
    found = transitions_of(store, model)
    episodes = [store.trajectory(episode) for episode in range(store.num_episodes)]
    mean, std = model.observation_mean, model.observation_std

    def rows(pick: Callable[..., object]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([pick(episode) for episode in episodes]))

    torch.testing.assert_close(found.pairs[:, :3] * std + mean, rows(lambda e: e.observations[:-1]))
    torch.testing.assert_close(found.following * std + mean, rows(lambda e: e.observations[1:]))
    torch.testing.assert_close(found.pairs[:, 3:], rows(lambda e: e.actions))
    assert torch.equal(found.rewards, rows(lambda e: e.rewards))
    ends = rows(lambda e: np.arange(len(e)) == len(e) - 1)
    terminal = rows(lambda e: np.full(len(e), e.terminated))
    assert torch.equal(found.terminated, ends & terminal)
    # Both kinds of ends are there, and only one of them masks.
    assert (ends & ~terminal).any() and found.terminated.any()


def test_units_are_the_policys(make_store: MakeStore) -> None:
    store = make_store(lengths=(6,))
    model = build_model(store)
    with torch.no_grad():
        model.action_middle += 0.25
        model.action_half *= 0.5
    steps = np.arange(6)
    window = Window(
        returns_to_go=np.zeros((1, 6, 1), np.float32),
        observations=store.observations[None, steps],
        actions=store.actions[None, steps],
        timesteps=steps[None],
        mask=np.ones((1, 6), bool),
    ).to_torch()
    inputs = model.inputs(window)
    pairs = transitions_of(store, model).pairs
    assert torch.equal(pairs, torch.cat([inputs.observations, inputs.actions], dim=-1)[0])


def test_a_batch_keeps_rows_together(make_store: MakeStore) -> None:
    store = make_store(lengths=LENGTHS)
    transitions = transitions_of(store, build_model(store))
    batch = transitions.batch(torch.tensor([3, 0, 3]))
    for values, full in zip(batch, transitions, strict=True):
        assert torch.equal(values, full[[3, 0, 3]])


def test_data_of_another_task_are_refused(make_store: MakeStore) -> None:
    model = build_model(make_store())
    with pytest.raises(UserError, match=r"\(4,\).*\(3,\).*--dataset"):
        transitions_of(make_store(observation_dim=4), model)
