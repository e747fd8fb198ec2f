"""Decision Transformer and the policies of behavior cloning against forwards written from their descriptions alone.

The description: tokens R, s, a of each step (without returns: s, a), the vector of the episode's timestep added to all
of a step, one LayerNorm, dropout, pre-norm blocks with ReLU, a last LayerNorm; actions are read at the state tokens.
The MLP: the last K states side by side, hidden layers with ReLU and dropout after each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import build_model
from models.parity import Scale, Written, check, relu
from torch import Tensor

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.sequence_model import SequenceModel

K = 6
MakeStore = Callable[..., TrajectoryStore]


class Transformer(Written):
    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        tokens = [
            self.linear("trunk.embed_observation", observations),
            self.embed("trunk.embed_action", actions),
        ]
        if self.config.backbone == "dt":
            tokens.insert(0, self.linear("trunk.embed_return", returns))
        x = self.pre_norm_blocks(tokens, timesteps)
        return (self.norm("trunk.final_norm", x)[:, len(tokens) - 2 :: len(tokens)],)


class MLP(Written):
    def __init__(self, model: SequenceModel, scale: Scale) -> None:
        super().__init__(model, scale)
        self.hidden = [name for name in self.weights if name.startswith("trunk.") and name.endswith("weight")]

    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        missing = self.config.context_length - observations.shape[1]
        x = torch.cat([observations.new_zeros(1, missing, observations.shape[2]), observations], 1).flatten(1)
        # Linear, ReLU, dropout: three places each.
        assert self.hidden == [f"trunk.layers.{3 * place}.weight" for place in range(self.config.num_layers)]
        for place in range(self.config.num_layers):
            x = self.scale(f"trunk.layers.{3 * place + 2}", relu(self.linear(f"trunk.layers.{3 * place}", x)))
        return (x[:, None],)


@pytest.mark.parametrize(
    ("config", "spaces"),
    [
        ({}, {}),
        ({"num_heads": 4}, {}),
        ({"timestep_embedding": "none"}, {}),
        ({"head": "gaussian"}, {}),
        ({}, {"actions": 4, "first_action": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
@pytest.mark.parametrize("backbone", ["dt", "no-return"])
def test_the_model_is_the_authors_decision_transformer(
    make_store: MakeStore, backbone: str, config: dict[str, Any], spaces: dict[str, int], real: list[int]
) -> None:
    model = build_model(make_store(**spaces), backbone=backbone, dropout=0.1, **config)
    check(Transformer, model, lambda window: (model(window),), real)


@pytest.mark.parametrize("spaces", [{}, {"actions": 4, "first_action": 3}], ids=["continuous", "discrete"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
def test_the_mlp_is_the_authors(
    make_store: MakeStore, spaces: dict[str, int], layers: int, real: list[int]
) -> None:
    model = build_model(make_store(**spaces), backbone="mlp", dropout=0.1, num_layers=layers)
    check(MLP, model, lambda window: (model(window),), real)
