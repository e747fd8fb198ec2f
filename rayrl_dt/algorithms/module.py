"""The RLlib module around `SequenceModel`."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.models.sequence_model import SequenceModel, check_architecture
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.trunk import ReturnPredictor
from rayrl_dt.precision import autocast
from rayrl_dt.seeding import seeded_weights
from rayrl_dt.types import Window

__all__ = ["POLICY_SPEC", "PREDICTIONS", "RETURNS", "SequenceRLModule"]

POLICY_SPEC = "policy_spec"
INIT_SEED = "init_seed"
PREDICTIONS = "predictions"
RETURNS = "predicted_returns"


class SequenceRLModule(TorchRLModule):
    """Holds the policy network; batches are `Window.to_dict()`.

    The model config must carry a resolved `PolicySpec` as JSON under `policy_spec`; the algorithm puts it there.

    Attributes:
        model: the policy network.
        precision: "fp32" or "bf16", set by the learner.
    """

    def setup(self) -> None:
        """Build the network with weights that are a function of the run's seed alone."""
        spec = PolicySpec.from_json(self.model_config[POLICY_SPEC])
        with seeded_weights(self.model_config.get(INIT_SEED) or 0, "init"):
            self.model = SequenceModel(spec)
        self.precision = "fp32"

    @property
    def judge(self) -> TwinCritic | None:
        """The twin Q that a training objective may ask; None without a critic."""
        return None

    def set_state(self, state: dict[str, Any]) -> None:
        """Load weights that must fit exactly; RLlib would skip missing ones without a word.

        Raises:
            UserError: the state is of another architecture; the weights are left as they were.
        """
        check_architecture(self.state_dict(), state, source="the checkpoint")
        super().set_state(state)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        window, trunk = Window.from_dict(batch), self.model.trunk
        with autocast(self.model.head.weight.device, self.precision):
            if not isinstance(trunk, ReturnPredictor):
                return {PREDICTIONS: self.model(self.model.dropping_returns(window))}
            # Returns and actions leave one forward, as DistributedDataParallel wants it.
            features, returns = trunk.features_and_returns(self.model.inputs(window))
            return {PREDICTIONS: self.model.read_out(features), RETURNS: returns}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Act on a batch of raw windows; runners use `VectorActor`, which calls the model itself."""
        with torch.no_grad():
            outputs = self.model(Window.from_dict(batch), last_only=True)[:, -1]  # (B, 1, O) -> (B, O)
        return {Columns.ACTIONS: self.model.to_env_actions(self.model.spec.head.mode(outputs))}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward_inference(batch, **kwargs)
