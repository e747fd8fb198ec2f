"""What a trunk is: normalized inputs in, one feature vector per read step out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from rayrl_dt.models.model_config import ModelConfig

__all__ = ["ReturnBlindTrunk", "ReturnPredictor", "Trunk", "TrunkInputs"]


@dataclass(frozen=True)
class TrunkInputs:
    """A window in model units. Padding holds zeros.

    Attributes:
        returns_to_go: `(B, K, 1)` scaled; NaN where nothing is asked for, of policies with return dropout.
        observations: `(B, K, *obs)` normalized.
        actions: `(B, K, A)` in [-1, 1], or `(B, K)` int64.
        timesteps: `(B, K)`.
        mask: `(B, K)` bool, or None if no step of the batch is padding.
    """

    returns_to_go: Tensor
    observations: Tensor
    actions: Tensor
    timesteps: Tensor
    mask: Tensor | None

    def repeated(self, times: int, returns_to_go: Tensor) -> TrunkInputs:
        """Return the windows M = `times` times over, one block after the other, with other returns `(M B, K, 1)`."""

        def again(values: Tensor) -> Tensor:
            return values.repeat(times, *[1] * (values.dim() - 1))

        mask = None if self.mask is None else again(self.mask)
        return TrunkInputs(
            returns_to_go, again(self.observations), again(self.actions), again(self.timesteps), mask
        )


class Trunk(nn.Module, ABC):
    """A backbone: everything between normalized inputs and the action head.

    Every one is made of the policy's `spec: PolicySpec`, and `source: DropoutSource` for its dropout layers.
    """

    @abstractmethod
    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, P, d)` of the last P steps: P is 1 with `last_only`, else K (1 for the MLP)."""

    def initialize_head(self, head: nn.Linear) -> None:
        """Initialize the action head, where the backbone's authors do not leave it to PyTorch."""
        del head

    @classmethod
    def check(cls, model: ModelConfig) -> None:
        """Check that the choices of a model go together.

        Raises:
            UserError: they do not.
        """

    @classmethod
    def decided(cls, model: ModelConfig) -> dict[str, Any]:
        """Return the backbone's own choices that are "auto" in a model, decided."""
        return {}


class ReturnBlindTrunk(Trunk):
    """A backbone whose dear part reads no return: what is asked for enters at its end.

    Other returns for the same windows then cost `ask` alone (`SequenceModel.outputs_for`).
    """

    @abstractmethod
    def context(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return what the windows are without their returns, `(B, P, d)`; P as for `forward`."""

    @abstractmethod
    def ask(self, context: Tensor, returns_to_go: Tensor) -> Tensor:
        """Return features for returns.

        Args:
            context: `(B, P, d)`.
            returns_to_go: `(B, P, 1)` scaled, or `(M, B, P, 1)` for several courses of them.

        Returns:
            `(B, P, d)`, or `(M, B, P, d)`.
        """

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return features `(B, P, d)`, each for its own step's return."""
        context = self.context(inputs, last_only=last_only)
        return self.ask(context, inputs.returns_to_go[:, -context.shape[1] :])


class ReturnPredictor(Trunk):
    """A backbone that also predicts the return that each state leads to."""

    @abstractmethod
    def predict_returns(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        """Return the return-to-go `(B, P)` (scaled) that each state leads to; its own return and action are not read.

        P is 1 with `last_only`, else K.
        """

    @abstractmethod
    def features_and_returns(self, inputs: TrunkInputs) -> tuple[Tensor, Tensor]:
        """Return what `forward` and `predict_returns` do for all steps."""
