"""StARformer with return tokens against a forward written from its description alone.

The description: the local tokens of a step are the previous action, each component of the state with a vector of its
own, and the tanh of the embedded return; they attend to each other. Their summary and the step's global token, both
with the vector of their slot, attend to all before. Actions are read at the global tokens.
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


class StARformer(Written):
    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        steps = observations.shape[1]
        slots = self.weights["trunk.slots"][K - steps :]
        local = self.scale("trunk.local_dropout", self.local_tokens(returns, observations, actions))
        states = self.linear("trunk.embed_observation", observations) + slots
        states = self.scale("trunk.global_dropout", states)
        for number in range(self.config.num_layers):
            block = f"trunk.blocks.{number}"
            heads = self.config.local_heads
            # Steps are a batch here: none sees another.
            local = self.pre_norm_block(f"{block}.within", local, gelu, heads=heads, causal=False)
            joined = self.norm(f"{block}.norm_local", local).flatten(1)[None]
            summary = self.norm(f"{block}.norm_summary", self.linear(f"{block}.summarize", joined)) + slots
            x = torch.stack([summary, states], 2).flatten(1, 2)
            x = self.pre_norm_block(f"{block}.among", x, gelu, heads=self.config.num_heads)
            states = x[:, 1::2]
        return (self.norm("trunk.final_norm", states),)

    def local_tokens(self, returns: Tensor, observations: Tensor, actions: Tensor) -> Tensor:
        """`(k, P, l)`."""
        name = "trunk.embed_local"
        taken = self.embed(f"{name}.embed_action", actions)[0]
        rows = []
        for step in range(observations.shape[1]):
            parts = [torch.zeros_like(taken[0]) if step == 0 else taken[step - 1]]
            for component, value in enumerate(observations[0, step]):
                embedded = self.linear(f"{name}.embed_component", value[None])
                parts.append(embedded + self.weights[f"{name}.components"][component])
            parts.append(torch.tanh(self.linear(f"{name}.embed_return", returns[0, step])))
            rows.append(torch.stack(parts))
        return torch.stack(rows)


@pytest.mark.parametrize(
    ("config", "spaces"),
    [
        ({}, {}),
        ({"num_heads": 4, "local_heads": 2, "local_dim": 8}, {"observation_dim": 5}),
        ({}, {"actions": 4, "first_action": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
def test_the_model_is_the_authors_starformer(
    make_store: MakeStore, config: dict[str, Any], spaces: dict[str, int], real: list[int]
) -> None:
    model = build_model(make_store(**spaces), backbone="starformer", dropout=0.1, **config)
    check(StARformer, model, lambda window: (model(window),), real)
