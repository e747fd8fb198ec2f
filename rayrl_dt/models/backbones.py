"""The table of backbones. Adding one takes a `Trunk` in a file of its own, and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayrl_dt.models.convformer import ConvFormerTrunk
from rayrl_dt.models.decision_transformer import MLPTrunk, TransformerTrunk
from rayrl_dt.models.decoupled import DecoupledTrunk
from rayrl_dt.models.dropout import DropoutSource
from rayrl_dt.models.radt import RADTTrunk
from rayrl_dt.models.reinformer import ReinformerTrunk
from rayrl_dt.models.starformer import StARformerTrunk
from rayrl_dt.models.trunk import ReturnPredictor, Trunk

if TYPE_CHECKING:
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["BACKBONES", "Backbone"]


@dataclass(frozen=True)
class Backbone:
    """What there is to know of a backbone from outside.

    Attributes:
        trunk: its class.
        arguments: for the class, beside those of every trunk.
        options: fields of `ModelConfig` that mean something to it and to those that name them too, no others.
        activation: its authors', for activation "auto".
        timestep_table: whether it learns an embedding of timesteps, which can be left out.
        attends_to: the tokens of a step, if each of its `blocks` has a self-attention over the tokens of all steps that
            can be read (`rayrl_dt.diagnosis.attention`); empty otherwise.
        every_step: whether it has an output for every step of windows of up to K steps; otherwise it takes windows of
            K steps alone, and has an output for the last.
        reads_returns: whether its actions hang on the returns-to-go.
    """

    trunk: type[Trunk]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    activation: str = "relu"
    timestep_table: bool = False
    attends_to: tuple[str, ...] = ()
    every_step: bool = True
    reads_returns: bool = True

    @property
    def predicts_returns(self) -> bool:
        """Whether it can act on returns that it predicted itself."""
        return issubclass(self.trunk, ReturnPredictor)

    def build(self, spec: PolicySpec, source: DropoutSource) -> Trunk:
        """Return the trunk of a policy, with new weights."""
        return self.trunk(spec, source=source, **self.arguments)


BACKBONES: dict[str, Backbone] = {
    "dt": Backbone(
        TransformerTrunk,
        arguments={"with_returns": True},
        options=("embeddings", "return_dropout"),
        timestep_table=True,
        attends_to=("return", "state", "action"),
    ),
    "radt": Backbone(
        RADTTrunk,
        options=(
            *("use_seqra", "use_stepra", "adaptive_scaling", "norm", "padding_mask", "embeddings"),
            "return_dropout",
        ),
        activation="gelu",
        attends_to=("state", "action"),
    ),
    "convformer": Backbone(
        ConvFormerTrunk,
        options=("conv_window", "return_dropout"),
        activation="gelu",
        timestep_table=True,
    ),
    "starformer": Backbone(
        StARformerTrunk, options=("local_dim", "local_heads", "return_dropout"), activation="gelu"
    ),
    "reinformer": Backbone(
        ReinformerTrunk,
        options=("shared_networks", "return_expectile", "context_rule"),
        activation="gelu",
        timestep_table=True,
    ),
    "no-return": Backbone(
        TransformerTrunk,
        arguments={"with_returns": False},
        options=("embeddings",),
        timestep_table=True,
        attends_to=("state", "action"),
        reads_returns=False,
    ),
    "decoupled": Backbone(
        DecoupledTrunk,
        options=("modulation", "return_dropout"),
        timestep_table=True,
        attends_to=("state", "action"),
    ),
    "mlp": Backbone(MLPTrunk, every_step=False, reads_returns=False),
}
