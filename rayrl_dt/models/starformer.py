"""The StARformer trunk for vector states: short-range attention within each step, long-range attention among steps.

A step has small local tokens (previous action, one for each component of the state, return-to-go) that attend to each
other, and one global token made of the whole state. Each layer turns the local tokens of a step into a summary, and
the global tokens attend to the summaries and global tokens up to their own step (Shang et al. 2022, "StARformer").
Followed is its form with return tokens in the RADT comparison (github.com/CyberAgentAILab/radt, MIT).

Differences from that code: its windows start at the second step of an episode or later, so that a previous action
exists; ours may start anywhere, hold no action from before, and give their first step the zero vector in its place.
Pads, which it fills with -10 and attends to, are masked among the steps. Its causal mask lets the first token see the
last one; ours does not. Of the long-range tokens, only those that are read are computed.

Positions are slots of the window, counted from its end, and know no timestep: the padding to the left of a window moves
its first steps to later slots, so that its outputs are not those of a longer window cut short.

Shape legend: B batch, K steps, S components of the state, P = S + 2 local tokens of a step, l their width, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.errors import UserError
from rayrl_dt.models.blocks import Block, attention_bias
from rayrl_dt.models.dropout import Dropout, DropoutSource
from rayrl_dt.models.encoders import ObservationEmbedding, encoder_of
from rayrl_dt.models.return_embedding import ReturnEmbedding
from rayrl_dt.models.trunk import Trunk, TrunkInputs

if TYPE_CHECKING:
    from rayrl_dt.models.model_config import ModelConfig
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["LocalEmbedding", "StARformerTrunk"]

_TOKENS_PER_STEP = 2  # summary, global token
_INIT_STD = 0.02


class LocalEmbedding(nn.Module):
    """The local tokens of each step: previous action, components of the state, return-to-go.

    Args:
        spec: the policy's specification.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        width, shape = spec.model.local_dim, spec.seen_space.shape or ()
        if len(shape) != 1 or encoder_of(spec.seen_space, spec.model.encoder).raw:
            raise UserError(
                f"backbone starformer reads the components of vectors, not observations {spec.seen_space.dtype} of "
                f"shape {shape}, which have none that mean something alone; choose dt, radt, convformer or no-return"
            )
        (components,) = shape
        self.embed_action = spec.head.embedding(width)
        self.embed_component = nn.Linear(1, width)
        self.components = nn.Parameter(torch.zeros(components, width))
        self.embed_return = ReturnEmbedding(width, spec.model)
        self.count = components + 2

    def forward(self, inputs: TrunkInputs) -> Tensor:
        """Return `(B, K, P, l)`."""
        actions = self.embed_action(inputs.actions)  # (B, K, l)
        if inputs.mask is not None:
            # Before a window's first step comes no action, whether its beginning is padded or not.
            actions = actions.masked_fill(~inputs.mask[..., None], 0.0)
        previous = functional.pad(actions[:, :-1], (0, 0, 1, 0))  # (B, K, l), the first one zero
        state = self.embed_component(inputs.observations[..., None]) + self.components  # (B, K, S, l)
        returns = torch.tanh(self.embed_return(inputs.returns_to_go))  # (B, K, l)
        return torch.cat([previous[:, :, None], state, returns[:, :, None]], dim=2)  # (B, K, P, l)


class _StARBlock(nn.Module):
    """Attention within the steps, a summary of each step, attention among summaries and global tokens."""

    def __init__(self, spec: PolicySpec, count: int, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        self.within = Block(model.local_dim, model.local_heads, model.dropout, model.activation, source)
        self.norm_local = nn.LayerNorm(model.local_dim)
        self.summarize = nn.Linear(count * model.local_dim, model.embed_dim)
        self.norm_summary = nn.LayerNorm(model.embed_dim)
        self.among = Block(model.embed_dim, model.num_heads, model.dropout, model.activation, source)

    def forward(
        self, local: Tensor, states: Tensor, slots: Tensor, bias: Tensor, read: slice
    ) -> tuple[Tensor, Tensor]:
        """Return the next local tokens, `(B * K, P, l)`, and the next global tokens that are read.

        Args:
            local: `(B * K, P, l)`.
            states: `(B, K, d)` global tokens.
            slots: `(K, d)` temporal embedding.
            bias: `(1 or B, 1, 2K, 2K)` mask among summaries and global tokens.
            read: the global tokens that are wanted, among the 2K.
        """
        local = self.within(local, local.new_zeros(1, 1, local.shape[1], local.shape[1]))
        summaries = self.norm_summary(
            self.summarize(self.norm_local(local).flatten(1))
        )  # (B K, P l) -> (B K, d)
        summaries = summaries.unflatten(0, states.shape[:2]) + slots  # (B, K, d)
        x = torch.stack([summaries, states], dim=2).flatten(1, 2)  # (B, 2 K, d)
        return local, self.among(x, bias, read)


class StARformerTrunk(Trunk):
    """StARformer over K steps; features are read at the global token of each step.

    Args:
        spec: the policy's specification.
        source: random source of the dropout layers.
    """

    def __init__(self, spec: PolicySpec, *, source: DropoutSource) -> None:
        super().__init__()
        model = spec.model
        width = model.embed_dim
        self.embed_observation = ObservationEmbedding(spec.seen_space, width, spec.model.encoder)
        self.embed_local = LocalEmbedding(spec)
        self.local_dropout = Dropout(model.dropout, source)
        self.global_dropout = Dropout(model.dropout, source)
        self.slots = nn.Parameter(torch.zeros(model.context_length, width))
        self.blocks = nn.ModuleList(
            _StARBlock(spec, self.embed_local.count, source) for _ in range(model.num_layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self.apply(_initialize)

    @classmethod
    def check(cls, model: ModelConfig) -> None:
        """Check that the heads within a step divide the width there; see `Trunk.check`."""
        if model.local_dim % model.local_heads:
            raise UserError(
                f"model_config.local_dim {model.local_dim} is not a multiple of local_heads {model.local_heads}; "
                "choose a width that the heads divide"
            )

    def initialize_head(self, head: nn.Linear) -> None:
        """Initialize the head as the authors do: truncated normal of scale 0.02, bias 0."""
        _initialize(head)

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, K, d)` at the global tokens, or `(B, 1, d)` for the last step only."""
        local = self.local_dropout(self.embed_local(inputs)).flatten(0, 1)  # (B, K, P, l) -> (B K, P, l)
        states = self.embed_observation(inputs.observations)  # (B, K, d)
        count = states.shape[1]
        slots = self.slots[-count:]  # (K, d)
        states = self.global_dropout(states + slots)
        tokens = _TOKENS_PER_STEP * count
        bias = attention_bias(inputs.mask, tokens, _TOKENS_PER_STEP, states)  # (1 or B, 1, 2 K, 2 K)
        every, last = slice(1, tokens, _TOKENS_PER_STEP), slice(tokens - 1, tokens)
        for block in self.blocks[:-1]:
            local, states = block(local, states, slots, bias, every)
        # (B, 2 K, d) -> (B, K or 1, d)
        _, states = self.blocks[-1](local, states, slots, bias, last if last_only else every)
        features: Tensor = self.final_norm(states)
        return features


def _initialize(layer: nn.Module) -> None:
    """Give one layer weights from a truncated normal of scale 0.02 and zero biases; embeddings of places stay zero."""
    if isinstance(layer, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(layer.weight, std=_INIT_STD)
    if isinstance(layer, nn.Linear):
        nn.init.zeros_(layer.bias)
