"""A softmax for each choice: against the categorical head where there is one choice, and whole policies of several."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import pytest
import torch

from rayrl_dt import SequencePolicy
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.heads import HEADS, CategoricalHead
from rayrl_dt.models.multi_categorical import MultiCategoricalHead
from rayrl_dt.models.spec import PolicySpec
from tests.builders import build_model, with_choices

SPACE = gym.spaces.MultiDiscrete([3, 2, 4], start=[5, 0, -1])


@pytest.fixture
def store(make_store: Any) -> TrajectoryStore:
    return with_choices(make_store(), SPACE)


def test_one_choice_is_the_categorical_head() -> None:
    one = MultiCategoricalHead(gym.spaces.MultiDiscrete([4], start=[2]), (), ())
    other = CategoricalHead(gym.spaces.Discrete(4, start=2), (), ())
    outputs = torch.randn(2, 5, 4)
    wanted, mask = torch.randint(4, (2, 5)), torch.rand(2, 5) > 0.3
    torch.testing.assert_close(
        one.imitation_loss(outputs, wanted[..., None], mask), other.imitation_loss(outputs, wanted, mask)
    )
    torch.testing.assert_close(one.mode(outputs)[..., 0], other.mode(outputs))
    draws = [
        head.sample(outputs[0], 9, torch.Generator().manual_seed(0)).reshape(9, 5) for head in (one, other)
    ]
    torch.testing.assert_close(*draws)
    torch.testing.assert_close(one.distance(outputs[0], outputs[1]), other.distance(outputs[0], outputs[1]))
    none = torch.zeros(0)
    actions = torch.randint(2, 6, (5,))
    torch.testing.assert_close(
        one.to_model_units(actions[:, None], none, none)[:, 0], other.to_model_units(actions, none, none)
    )


def test_the_loss_is_the_likelihood_of_the_whole_action() -> None:
    head = MultiCategoricalHead(SPACE, (), ())
    outputs = torch.randn(1, 2, 9)
    wanted = torch.tensor([[[2, 0, 3], [9, 9, 9]]])
    law = [part.log_softmax(-1)[0, 0] for part in outputs.split([3, 2, 4], dim=-1)]
    expected = -(law[0][2] + law[1][0] + law[2][3])
    torch.testing.assert_close(head.imitation_loss(outputs, wanted, torch.tensor([[True, False]])), expected)


@pytest.mark.parametrize("backbone", ["dt", "radt", "convformer", "starformer", "reinformer", "mlp"])
def test_policies_of_several_choices_learn_and_act(store: TrajectoryStore, backbone: str) -> None:
    options = {"context_length": 1} if backbone == "mlp" else {}
    model = build_model(store, backbone=backbone, **options)
    spec = PolicySpec.from_json(json.loads(json.dumps(model.spec.to_json(), allow_nan=False)))
    assert spec.model.head == "multi-categorical" and spec.action_space == SPACE
    assert HEADS[spec.model.head].fits(SPACE) and spec.samples_actions
    taken = []
    for seed in (None, 3):
        policy = SequencePolicy(model, sample_seed=seed)
        policy.reset() if backbone == "reinformer" else policy.reset(2.0)
        for step in range(8):
            action = policy.act(store.observations[step], None if step == 0 else 0.5)
            assert SPACE.contains(action)
            taken.append(tuple(action))
    assert len(set(taken)) > 1
