"""Reinformer's trunk: it predicts the return of each step from its state, and reads actions where a return stands.

Zhuang et al. 2024, "Reinformer: Max-Return Sequence Modeling for Offline RL", section 4, in the form of Lin et al. 2025
(Action Gradient), which trains two networks: one predicts returns, the other actions. Both read the tokens s, R, a of
each step; the return of step t is read at s_t, the action at R_t. `shared_networks` is the one network of Reinformer.

Differences from Reinformer's released code: heads and action losses are those of the other backbones (the code has a
Gaussian without tanh, whose spread does not hang on the state); windows are drawn and padded as for the other
backbones; the head for the next state, which no loss trains, is left out. The timestep table is as long as the longest
episode, not 4096, and starts small.

Shape legend: B batch, K steps, P read steps, T = 3 K tokens, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayrl_dt.errors import UserError
from rayrl_dt.models.blocks import CausalSelfAttention, FeedForward, attention_bias, initialize_normal
from rayrl_dt.models.dropout import Dropout, DropoutSource
from rayrl_dt.models.encoders import ObservationEmbedding
from rayrl_dt.models.timesteps import TimestepTable, add_timesteps
from rayrl_dt.models.trunk import ReturnPredictor, TrunkInputs

if TYPE_CHECKING:
    from rayrl_dt.models.model_config import ModelConfig
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["ReinformerTrunk"]

_TOKENS_PER_STEP = 3
_STATE, _RETURN = 0, 1  # places within a step


class _PostNormBlock(nn.Module):
    """LN(x + attention(x)), then LN(x + MLP(x))."""

    def __init__(self, spec: PolicySpec, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        width = model.embed_dim
        self.attention = CausalSelfAttention(width, model.num_heads, model.dropout, source)
        self.dropout = Dropout(model.dropout, source)
        self.norm_attention = nn.LayerNorm(width)
        self.mlp = FeedForward(width, model.dropout, model.activation, source)
        self.norm_mlp = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor, read: slice | None = None) -> Tensor:
        """Return `(B, T, d)`, or `(B, P, d)` for the tokens `read`; see `CausalSelfAttention.forward`."""
        attended = self.dropout(self.attention(x, bias, read))  # (B, T, d) -> (B, P, d)
        x = self.norm_attention((x if read is None else x[:, read]) + attended)
        output: Tensor = self.norm_mlp(x + self.mlp(x))
        return output


class _Network(nn.Module):
    """A transformer over the tokens s, R, a of K steps, with embeddings of its own."""

    def __init__(self, spec: PolicySpec, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        width = model.embed_dim
        self.embed_observation = ObservationEmbedding(spec.seen_space, width, spec.model.encoder)
        self.embed_return = nn.Linear(1, width)
        self.embed_action = spec.head.embedding(width)
        self.embed_timestep = TimestepTable.of(model)
        if self.embed_timestep is not None:
            # N(0, 1) drowns the observation in noise that each timestep has to unlearn by itself.
            initialize_normal(self.embed_timestep)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_PostNormBlock(spec, source) for _ in range(model.num_layers))

    def forward(self, inputs: TrunkInputs, read: slice | None) -> Tensor:
        """Return features `(B, T, d)`, or `(B, P, d)` for the tokens `read`."""
        tokens = [
            self.embed_observation(inputs.observations),
            self.embed_return(inputs.returns_to_go),
            self.embed_action(inputs.actions),
        ]
        # 3 x (B, K, d) -> (B, K, 3, d)
        x = add_timesteps(torch.stack(tokens, dim=2), self.embed_timestep, inputs.timesteps)
        x = self.embed_norm(x).flatten(1, 2)  # (B, K, 3, d) -> (B, T, d); without dropout, unlike DT's
        bias = attention_bias(inputs.mask, x.shape[1], _TOKENS_PER_STEP, x)  # (1 or B, 1, T, T)
        for block in self.blocks[:-1]:
            x = block(x, bias)
        features: Tensor = self.blocks[-1](x, bias, read)
        return features


class ReinformerTrunk(ReturnPredictor):
    """Features for actions at the return tokens, and a predicted return at each state token.

    Args:
        spec: the policy's specification.
        source: random source of the dropout layers.
    """

    def __init__(self, spec: PolicySpec, *, source: DropoutSource) -> None:
        super().__init__()
        self.action_network = _Network(spec, source)
        self.return_network = None if spec.model.shared_networks else _Network(spec, source)
        self.return_head = nn.Linear(spec.model.embed_dim, 1)

    @classmethod
    def check(cls, model: ModelConfig) -> None:
        """Check that a rule that compares predicted returns has some; see `Trunk.check`."""
        if model.target_rule not in ("auto", "predicted") and model.context_rule != "consecutive":
            raise UserError(
                f"model_config.context_rule {model.context_rule!r} compares predicted returns, and target_rule is "
                f"{model.target_rule!r}; remove it, or set target_rule: predicted"
            )

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, K, d)` at the return tokens, or `(B, 1, d)` for the last step only."""
        features: Tensor = self.action_network(inputs, _places(_RETURN, inputs, last_only))
        return features

    def predict_returns(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return the returns-to-go read at the state tokens; see `ReturnPredictor`."""
        network = self.action_network if self.return_network is None else self.return_network
        returns: Tensor = self.return_head(network(inputs, _places(_STATE, inputs, last_only)))
        return returns[..., 0]  # (B, P, 1) -> (B, P)

    def features_and_returns(self, inputs: TrunkInputs) -> tuple[Tensor, Tensor]:
        """Return what `forward` and `predict_returns` do for all steps; a shared network runs once."""
        if self.return_network is not None:
            return self(inputs), self.predict_returns(inputs)
        x = self.action_network(inputs, None)  # (B, T, d), of which every third token: (B, K, d)
        return x[:, _RETURN::_TOKENS_PER_STEP], self.return_head(x[:, _STATE::_TOKENS_PER_STEP])[..., 0]


def _places(kind: int, inputs: TrunkInputs, last_only: bool) -> slice:
    """Return the tokens of one kind, of all steps or of the last."""
    tokens = inputs.timesteps.shape[1] * _TOKENS_PER_STEP
    return slice(tokens - _TOKENS_PER_STEP + kind if last_only else kind, tokens, _TOKENS_PER_STEP)
