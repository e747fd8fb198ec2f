"""What a policy would do along logged episodes: held to windows that are cut by hand, and to a policy that acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, taken

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.serving.along import act_along
from rayrl_dt.types import Trajectory, Window

MakeStore = Callable[..., TrajectoryStore]
LENGTHS = (11, 3, 7)


def window_at(
    store: TrajectoryStore, episode: int, step: int, target: float, steps: int
) -> Window[torch.Tensor]:
    """What the policy knows at a step, cut out of the episode by hand."""
    logged = store.trajectory(episode)
    first = max(0, step - steps + 1)
    real = slice(steps - (step - first + 1), steps)
    observations = np.zeros((1, steps, *logged.observations.shape[1:]), np.float32)
    actions = np.zeros((1, steps, *logged.actions.shape[1:]), logged.actions.dtype)
    returns_to_go, timesteps = np.zeros((1, steps, 1), np.float32), np.zeros((1, steps), np.int64)
    mask = np.zeros((1, steps), bool)
    observations[0, real] = logged.observations[first : step + 1]
    actions[0, real][:-1] = logged.actions[first:step]
    returns_to_go[0, real, 0] = [target - logged.rewards[:t].sum() for t in range(first, step + 1)]
    timesteps[0, real], mask[0, real] = np.arange(first, step + 1), True
    return Window(
        returns_to_go=returns_to_go,
        observations=observations,
        actions=actions,
        timesteps=timesteps,
        mask=mask,
    ).to_torch()


@pytest.mark.parametrize("backbone", ["dt", "radt"])
@pytest.mark.parametrize("actions", [None, 4])
def test_each_answer_is_that_of_its_own_window(
    make_store: MakeStore, backbone: str, actions: int | None
) -> None:
    store = make_store(lengths=LENGTHS, actions=actions)
    model = build_model(store, backbone=backbone)
    asked, targets = np.array([2, 0, 0, 1]), np.array([3.0, -4.0, 8.0, 0.5])
    found = act_along(model, store, asked, targets)
    expected = [
        (episode, step, target)
        for episode, target in zip(asked, targets, strict=True)
        for step in range(store.lengths[episode])
    ]
    assert list(zip(found.episodes, found.steps, found.targets, strict=True)) == expected
    for row, (episode, step, target) in enumerate(expected):
        window = window_at(store, episode, step, target, model.spec.model.context_length)
        with torch.no_grad():
            plain = taken(model, model(window, last_only=True)[:, -1])[0]
        np.testing.assert_allclose(found.actions[row], plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.logged[row], store.trajectory(episode).actions[step])
        assert found.returns_to_go[row] == pytest.approx(float(window.returns_to_go[0, -1, 0]), abs=1e-5)


def played(model: SequenceModel, like: TrajectoryStore, target: float) -> TrajectoryStore:
    """Return episodes in which the policy itself acted, on the observations and rewards of others."""
    episodes = []
    for number in range(like.num_episodes):
        logged, actor = like.trajectory(number), VectorActor(model, 1)
        rewards = np.concatenate([[0.0], logged.rewards])
        actions = [
            actor.act(
                logged.observations[step][None],
                rewards[step : step + 1],
                np.array([step == 0]),
                np.array([target]),
            )[0].copy()
            for step in range(len(logged.actions))
        ]
        episodes.append(replace(logged, actions=np.stack(actions)))
    return TrajectoryStore.from_trajectories(episodes, like.info)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_a_policy_agrees_with_what_it_did_itself(make_store: MakeStore, backbone: str) -> None:
    store = make_store(lengths=LENGTHS)
    model = build_model(store, backbone=backbone)
    own = played(model, store, target=6.0)
    found = act_along(model, own, np.arange(own.num_episodes), np.full(own.num_episodes, 6.0))
    np.testing.assert_allclose(found.actions, found.logged, rtol=1e-4, atol=1e-5)


def test_a_policy_of_images_agrees_with_what_it_did_itself() -> None:
    rng, space = np.random.default_rng(0), gym.spaces.Box(0, 255, (84, 84), np.uint8)
    episodes = [
        Trajectory(
            rng.integers(256, size=(steps + 1, 84, 84), dtype=np.uint8),
            rng.integers(3, size=steps),
            rng.normal(size=steps).astype(np.float32),
            terminated=False,
        )
        for steps in (5, 9)
    ]
    store = TrajectoryStore.from_trajectories(episodes, DatasetInfo("test", space, gym.spaces.Discrete(3)))
    model = build_model(store)
    own = played(model, store, target=6.0)
    found = act_along(model, own, np.arange(2), np.full(2, 6.0))
    np.testing.assert_array_equal(found.actions, found.logged)


def test_a_shorter_context_sees_less(make_store: MakeStore) -> None:
    store = make_store(lengths=LENGTHS)
    model = build_model(store)
    options: dict[str, Any] = {
        "model": model,
        "store": store,
        "episodes": np.arange(3),
        "targets": np.zeros(3),
    }
    whole, short = act_along(**options), act_along(**options, context_length=2)
    same = np.isclose(whole.actions, short.actions, atol=1e-6).all(axis=1)
    assert same[whole.steps < 2].all() and not same[whole.steps >= 2].any()
