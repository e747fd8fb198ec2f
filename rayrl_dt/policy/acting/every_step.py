"""A policy's outputs at every step of windows that do not slide, without gradients.

The targets of the critics want the slow copy's actions at all steps of a batch, at each gradient step. Autocast rounds
each weight for each product, and the model's forward keeps the form that its backward needs; this computes the same, up
to rounding, with fewer products and about half of the operations.

Shape legend: B batch, K steps, P tokens of a step, T = P K tokens, d width, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrl_dt.models.blocks import attention_bias
from rayrl_dt.models.decision_transformer import TransformerTrunk
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.trunk import TrunkInputs
from rayrl_dt.policy.acting.decision_transformer import layer_plans
from rayrl_dt.policy.acting.watch import has_hooks
from rayrl_dt.precision import autocast, dtype_of
from rayrl_dt.types import Window

__all__ = ["outputs_at_every_step"]


@torch.no_grad()
def outputs_at_every_step(model: SequenceModel, window: Window[Tensor], precision: str) -> Tensor:
    """Return the outputs `(B, K, O)` of a model in eval mode; see `SequenceModel.forward`.

    Written out for Decision Transformers on a CPU that no hook listens to; all others are asked themselves.

    Args:
        model: the policy network. Nothing of it is kept.
        window: raw window.
        precision: "fp32" or "bf16", of products and attention; residual stream, norms, softmax, embedding and head are
            float32.
    """
    if not _can_be_written_out(model, window.mask.device):
        with autocast(window.mask.device, precision):
            outputs: Tensor = model(window)
        return outputs
    trunk = model.trunk
    assert isinstance(trunk, TransformerTrunk)
    return model.read_out(_features(trunk, model.inputs(window), dtype_of(precision)))


def _can_be_written_out(model: SequenceModel, device: torch.device) -> bool:
    """Return whether the model is exactly what is written out here, and nobody listens."""
    plain = type(model) is SequenceModel and type(model.trunk) is TransformerTrunk and not model.training
    return plain and device.type == "cpu" and not has_hooks(model)


def _features(trunk: TransformerTrunk, inputs: TrunkInputs, dtype: torch.dtype) -> Tensor:
    """Return the trunk's features `(B, K, d)`."""
    x, step = trunk.embed(inputs).flatten(1, 2), trunk.tokens_per_step  # (B, K, P, d) -> (B, T, d)
    # (1 or B, 1, T, T) -> (1 or B, T, T)
    bias = attention_bias(inputs.mask, x.shape[1], step, torch.empty(0, dtype=dtype))[:, 0]
    *layers, last = layer_plans(trunk, dtype)
    for layer in layers:
        query, key, value = layer.attention.project(layer.norm_attention(x))  # (B, T, d) each
        x = x + layer.attention.attend(query, key, value, bias)
        x += layer.mlp(layer.norm_mlp(x))
    states = slice(step - 2, None, step)
    # (B, T, d) -> (B, K, d)
    x = x[:, states] + last.attention.read(last.norm_attention(x), states, bias[:, states])
    x += last.mlp(last.norm_mlp(x))
    features: Tensor = trunk.final_norm(x)
    return features
