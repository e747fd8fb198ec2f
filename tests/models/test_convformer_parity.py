"""Decision ConvFormer against a forward written from its description alone.

The description: Decision Transformer's tokens, timesteps, LayerNorm and dropout; pre-norm blocks in which three
depthwise causal convolutions over the whole sequence stand for attention, one for each kind of token, kept at the
tokens of its kind; an MLP with GELU; a last LayerNorm; actions are read at the state tokens.
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

K = 6
MakeStore = Callable[..., TrajectoryStore]


class ConvFormer(Written):
    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        tokens = [
            self.linear("trunk.embed_return", returns),
            self.linear("trunk.embed_observation", observations),
            self.embed("trunk.embed_action", actions),
        ]
        x = torch.stack([t + self.timestep("trunk.embed_timestep", timesteps) for t in tokens], 2)
        x = self.scale("trunk.embed_dropout", self.norm("trunk.embed_norm", x.flatten(1, 2)))
        for number in range(self.config.num_layers):
            block = f"trunk.blocks.{number}"
            x = x + self.convolve(f"{block}.convolution", self.norm(f"{block}.norm_convolution", x))
            x = x + self.mlp(block, self.norm(f"{block}.norm_mlp", x), gelu)
        return (self.norm("trunk.final_norm", x)[:, 1::3],)

    def convolve(self, name: str, x: Tensor) -> Tensor:
        """Token by token: what stands before it, weighed by the filter of its kind; the last tap is its own."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if len(bias) == 1:  # the last layer has the filter of states alone
            weight, bias = weight.expand(-1, 3, -1), bias.expand(3, -1)
        rows = []
        for place in range(x.shape[1]):
            kind = place % 3
            y = bias[kind]
            for back in range(min(place + 1, len(weight))):
                y = y + weight[len(weight) - 1 - back, kind] * x[:, place - back]
            rows.append(y)
        return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("config", "spaces"),
    [
        ({}, {}),
        ({"conv_window": 2, "num_layers": 3}, {}),
        ({"timestep_embedding": "none"}, {}),
        ({}, {"actions": 4, "first_action": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
def test_the_model_is_the_authors_convformer(
    make_store: MakeStore, config: dict[str, Any], spaces: dict[str, int], real: list[int]
) -> None:
    model = build_model(make_store(**spaces), backbone="convformer", dropout=0.1, **config)
    check(ConvFormer, model, lambda window: (model(window),), real)
