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


MODULATIONS = {"linear": _linear, "mlp": _mlp}
"""By their names in `model_config.modulation`: from a return `(..., 1)` to scale and shift `(..., 2 d)`."""


class DecoupledTrunk(TransformerTrunk, ReturnBlindTrunk):
    """The transformer of states and actions, whose features each step's return modulates.

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
        last = self.modulation[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def context(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return normalized features `(B, P, d)` at the state tokens; no return is read."""
        return TransformerTrunk.forward(self, inputs, last_only=last_only)

    def ask(self, context: Tensor, returns_to_go: Tensor) -> Tensor:
        """Scale features by 1 + g and shift them; see `ReturnBlindTrunk`."""
        scale, shift = self.modulation(returns_to_go).chunk(2, dim=-1)  # (..., 1) -> 2 x (..., d)
        # (B, P, d) with (M, B, P, d) -> (M, B, P, d)
        return torch.addcmul(shift.to(context.dtype), context, 1 + scale)

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, P, d)`, each for its own step's return."""
        return ReturnBlindTrunk.forward(self, inputs, last_only=last_only)
