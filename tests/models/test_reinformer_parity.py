"""Reinformer against a forward written from its description alone.

The description: tokens s, R, a of each step, the vector of the episode's timestep added to all of a step, one
LayerNorm, post-norm blocks with GELU. The return of a step is predicted at its state, the action read at its return:
by one network, or by two of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import build_model
from models.parity import Written, check, gelu
from torch import Tensor

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.types import Window

K = 6
MakeStore = Callable[..., TrajectoryStore]


class Reinformer(Written):
    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        inputs = (returns, observations, actions, timesteps)
        to_act = self.network("trunk.action_network", *inputs)
        to_predict = to_act
        if not self.config.shared_networks:
            to_predict = self.network("trunk.return_network", *inputs)
        predicted = self.linear("trunk.return_head", to_predict[:, 0::3])
        return to_act[:, 1::3], predicted[..., 0]

    def network(
        self, name: str, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> Tensor:
        tokens = [
            self.linear(f"{name}.embed_observation", observations),
            self.linear(f"{name}.embed_return", returns),
            self.embed(f"{name}.embed_action", actions),
        ]
        x = torch.stack([t + self.timestep(f"{name}.embed_timestep", timesteps) for t in tokens], 2)
        x = self.norm(f"{name}.embed_norm", x.flatten(1, 2))
        for number in range(self.config.num_layers):
            block = f"{name}.blocks.{number}"
            attended = self.self_attention(block, x, heads=self.config.num_heads)
            x = self.norm(f"{block}.norm_attention", x + attended)
            x = self.norm(f"{block}.norm_mlp", x + self.mlp(block, x, gelu))
        return x


@pytest.mark.parametrize(
    ("config", "spaces"),
    [
        ({}, {}),
        ({"num_heads": 4}, {}),
        ({"timestep_embedding": "none"}, {}),
        ({}, {"actions": 4, "first_action": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("shared", [False, True], ids=["two networks", "one network"])
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
def test_the_model_is_the_authors_reinformer(
    make_store: MakeStore, shared: bool, config: dict[str, Any], spaces: dict[str, int], real: list[int]
) -> None:
    model = build_model(
        make_store(**spaces), backbone="reinformer", dropout=0.1, shared_networks=shared, **config
    )

    def run(window: Window[Tensor]) -> tuple[Tensor, ...]:
        predicted = model.trunk.predict_returns(model.inputs(window))
        return model(window), predicted

    check(Reinformer, model, run, real)
