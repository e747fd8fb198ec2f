"""The Decision Transformer trunk, with or without return tokens, and the MLP of behavior cloning.

A trunk turns normalized inputs into features from which the action of each step is read. The same class is
Decision Transformer (tokens R, s, a; Chen et al. 2021, section 3) and transformer BC (tokens s, a).

Differences from the released code: pads are masked rather than filled with -10; the prediction heads for
states and returns, which the paper's loss never trains, are left out; the last block computes only the tokens
that are read.

Shape legend: B batch, K steps, P tokens of a step (3 with returns, else 2), T = P K tokens, F features of an
observation, d width; `*obs` observation shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayrl_dt.models.blocks import Block, attention_bias, initialize_normal
from rayrl_dt.models.dropout import Dropout, DropoutSource
from rayrl_dt.models.encoders import ObservationEmbedding, encoder_of
from rayrl_dt.models.positions import WindowPositions
from rayrl_dt.models.return_embedding import ReturnEmbedding
from rayrl_dt.models.timesteps import TimestepTable, add_timesteps
from rayrl_dt.models.trunk import Trunk, TrunkInputs

if TYPE_CHECKING:
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["MLPTrunk", "TransformerTrunk"]


class TransformerTrunk(Trunk):
    """GPT-2 body over the tokens of K steps; features are read at the state tokens.

    Args:
        spec: the policy's specification.
        with_returns: whether steps carry a return token.
        source: random source of the dropout layers.
    """

    def __init__(self, spec: PolicySpec, *, with_returns: bool, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        width = model.embed_dim
        self.with_returns = with_returns
        self.tokens_per_step = 3 if with_returns else 2
        self.embed_return = ReturnEmbedding(width, model) if with_returns else None
        self.embed_observation = ObservationEmbedding(spec.seen_space, width, spec.model.encoder)
        self.embed_action = spec.head.embedding(width)
        self.positions: WindowPositions | None = None
        if model.embeddings == "atari":
            self.positions = WindowPositions(model, self.tokens_per_step)
            self.embed_action.apply(initialize_normal)
        else:
            self.embed_timestep = TimestepTable.of(model)
            self.embed_norm = nn.LayerNorm(width)
        self.embed_dropout = Dropout(model.dropout, source)
        self.blocks = nn.ModuleList(
            Block(width, model.num_heads, model.dropout, model.activation, source)
            for _ in range(model.num_layers)
        )
        self.final_norm = nn.LayerNorm(width)
        for block in self.blocks:
            block.apply(initialize_normal)

    def initialize_head(self, head: nn.Linear) -> None:
        """Initialize the head of Atari's networks as their authors do: N(0, 0.02), without a bias."""
        if self.positions is not None:
            initialize_normal(head)
            head.register_parameter("bias", None)

    def embed(self, inputs: TrunkInputs) -> Tensor:
        """Return the P tokens of each step, `(B, K, P, d)`; without returns P is 2.

        Each is a function of its step alone, but for positions of the window where embeddings are those for Atari.
        """
        tokens = [self.embed_observation(inputs.observations), self.embed_action(inputs.actions)]
        if self.embed_return is not None:
            tokens.insert(0, self.embed_return(inputs.returns_to_go))
        if self.positions is not None:
            positions: Tensor = self.positions(inputs.timesteps, inputs.mask)  # (B, K, P, d)
            return torch.stack(tokens, dim=2).tanh() + positions
        # The last action token is seen by nobody: its action is what is asked for.
        # P x (B, K, d) -> (B, K, P, d)
        x = add_timesteps(torch.stack(tokens, dim=2), self.embed_timestep, inputs.timesteps)
        embedded: Tensor = self.embed_norm(x)
        return embedded

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, K, d)` at the state tokens, or `(B, 1, d)` for the last step only."""
        x = self.embed_dropout(self.embed(inputs).flatten(1, 2))  # (B, K, P, d) -> (B, T, d)
        bias = attention_bias(inputs.mask, x.shape[1], self.tokens_per_step, x)  # (1 or B, 1, T, T)
        state = self.tokens_per_step - 2
        begin = x.shape[1] - 2 if last_only else state
        read = slice(begin, x.shape[1], self.tokens_per_step)
        for block in self.blocks[:-1]:
            x = block(x, bias)
        return self.last_block(x, bias, read)

    def last_block(self, x: Tensor, bias: Tensor, read: slice) -> Tensor:
        """Return the features `(B, K or 1, d)` of the tokens `read`, for tokens `(B, T, d)`; see `Block.forward`."""
        features: Tensor = self.final_norm(self.blocks[-1](x, bias, read))
        return features


class MLPTrunk(Trunk):
    """The MLP of behavior cloning: the last K normalized observations, concatenated.

    Layer sizes and dropout as in Decision Transformer's Gym baseline (Linear, then L-1 times ReLU, dropout,
    Linear).
    """

    def __init__(self, spec: PolicySpec, *, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        self.encoder = encoder_of(spec.seen_space, model.encoder)(spec.seen_space)
        layers: list[nn.Module] = [nn.Linear(model.context_length * self.encoder.features, model.embed_dim)]
        for _ in range(model.num_layers - 1):
            layers += [
                nn.ReLU(),
                Dropout(model.dropout, source),
                nn.Linear(model.embed_dim, model.embed_dim),
            ]
        self.layers = nn.Sequential(*layers, nn.ReLU(), Dropout(model.dropout, source))

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, 1, d)` for the window's last step, whatever `last_only` says."""
        del last_only
        observations = self.encoder(inputs.observations)  # (B, K, *obs) -> (B, K, F)
        features: Tensor = self.layers(observations.flatten(1))  # (B, K F) -> (B, d)
        return features[:, None]
