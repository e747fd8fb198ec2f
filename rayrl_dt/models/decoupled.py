"""The decoupled trunk: states and actions alone go through the transformer, the newest return enters behind it.

Past returns repeat past rewards, which a policy does not need where observations and actions are history enough (Wang
et al. 2026, "Decoupling RTG"). The return-to-go of a step scales and shifts the step's last hidden state, from which
the action is read. What the transformer computes is the same whatever is asked for, so further returns for one context
cost a head each, and no forward.

The paper's code is not public. Its text, as others report it, has one linear layer from the return to scale and shift,
which starts at zero; here the scale is 1 plus it, for otherwise nothing of the state would be left at first.

Shape legend: B batch, M courses of returns, P steps that are read, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayrl_dt.models.blocks import Block
from rayrl_dt.models.decision_transformer import TransformerTrunk
from rayrl_dt.models.dropout import DropoutSource
from rayrl_dt.models.trunk import ReturnBlindTrunk, TrunkInputs

if TYPE_CHECKING:
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["MODULATIONS", "DecoupledTrunk"]


def _linear(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 2 * width))


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, 2 * width))


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, 4 * width))


MODULATIONS = {"linear": _linear, "mlp": _mlp, "block": _block}
"""By their names in `model_config.modulation`: from a return `(..., 1)` to scale and shift `(..., 2 d)`; with "block"
also to those of what the last feed-forward layer reads, `(..., 4 d)`."""


class DecoupledTrunk(TransformerTrunk, ReturnBlindTrunk):
    """The transformer of states and actions, whose features each step's return modulates.

    With modulation "block" the return also enters the last block, behind its attention: it scales and shifts what the
    feed-forward layer reads. Everything before, and so all keys and values, still knows no return.

    Args:
        spec: the policy's specification.
        source: random source of the dropout layers.
    """

    def __init__(self, spec: PolicySpec, *, source: DropoutSource) -> None:
        super().__init__(spec, with_returns=False, source=source)
        width = spec.model.embed_dim
        # Scale and shift come from the return.
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = MODULATIONS[spec.model.modulation](width)
        self.in_block = spec.model.modulation == "block"
        self._knows_nothing = spec.model.return_dropout > 0
        last = self.modulation[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def context(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return normalized features `(B, P, d)` at the state tokens; with "block" those behind the last attention."""
        return TransformerTrunk.forward(self, inputs, last_only=last_only)

    def ask(self, context: Tensor, returns_to_go: Tensor) -> Tensor:
        """Scale features by 1 + g and shift them; see `ReturnBlindTrunk`."""
        modulation = self._modulation_by(returns_to_go)  # (..., 1) -> (..., 2 d), or (..., 4 d)
        if not self.in_block:
            return _moved(context, modulation)
        inside, outside = modulation.chunk(2, dim=-1)  # 2 x (..., 2 d)
        block = self.blocks[-1]
        assert isinstance(block, Block)
        read = _moved(block.norm_mlp(context), inside)  # (B, P, d) -> (M, B, P, d)
        x = context + self._fed(block, read)
        return _moved(self.final_norm(x), outside)

    def last_block(self, x: Tensor, bias: Tensor, read: slice) -> Tensor:
        """Return normalized features `(B, P, d)`, or with "block" what the last attention leaves."""
        block = self.blocks[-1]
        assert isinstance(block, Block)
        return block.attend(x, bias, read) if self.in_block else super().last_block(x, bias, read)

    def _fed(self, block: Block, read: Tensor) -> Tensor:
        """Return what the feed-forward layer makes of `(B, P, d)`, or `(M, B, P, d)` with the same masks for all M."""
        if read.dim() == 3 or not self.training:
            fed: Tensor = block.mlp(read)
            return fed
        return block.mlp.dropout.source.same_for_each(block.mlp, read)

    def _modulation_by(self, returns_to_go: Tensor) -> Tensor:
        """Return scales and shifts `(..., 2 d or 4 d)` for returns `(..., 1)`: zeros, where nothing is asked for."""
        modulation: Tensor
        if not self._knows_nothing:
            modulation = self.modulation(returns_to_go)
            return modulation
        unasked = returns_to_go.isnan()
        modulation = self.modulation(returns_to_go.masked_fill(unasked, 0.0))
        return modulation.masked_fill(unasked, 0.0)

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, P, d)`, each for its own step's return."""
        return ReturnBlindTrunk.forward(self, inputs, last_only=last_only)


def _moved(features: Tensor, modulation: Tensor) -> Tensor:
    """Scale features `(B, P, d)` by 1 + g and shift them, with `(..., B, P, 2 d)`, to `(..., B, P, d)`."""
    scale, shift = modulation.chunk(2, dim=-1)
    return torch.addcmul(shift.to(features.dtype), features, 1 + scale)
