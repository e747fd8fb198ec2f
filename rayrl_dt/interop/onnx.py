"""Policies as ONNX graphs: raw windows in, the environment's actions out; acting then needs onnxruntime alone.

Shape legend: B batch, K steps that the policy acts on, A action dimensions, O outputs of a step; `*obs` shape of what
the policy sees at a step. Discrete actions have no axis A.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError
from rayrl_dt.interop.header import GRAPH, HEADER
from rayrl_dt.models.encoders import encoder_of
from rayrl_dt.models.head import ContinuousHead
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

__all__ = ["INPUTS", "OUTPUTS", "export_onnx"]

INPUTS = ("observations", "actions", "returns_to_go", "timesteps", "mask")
OUTPUTS = ("action", "outputs")


def export_onnx(model: SequenceModel, folder: str | os.PathLike[str]) -> Path:
    """Write `policy.onnx`, a graph that computes the policy's newest action, with our `policy.json` beside it.

    Its inputs are a raw window, padded on the left: `observations (B, K, *obs)`, `actions (B, K, A)` or `(B, K)`
    (what the last slot holds is not read), `returns_to_go (B, K, 1)` raw, `timesteps (B, K)` int64 and `mask (B, K)`
    bool, True at real steps. Its outputs are `action`, `(B, A)` or `(B,)` in the environment's units (the most likely
    one), and `outputs (B, O)`, the logits of discrete actions, to draw from. Any batch goes; K is what the policy acts
    on. The policy's guidance is in the graph.

    Raises:
        UserError: the policy predicts its own returns, it sees a picture and numbers, or what writes graphs is not
            installed.
    """
    spec = model.spec
    if isinstance(spec.seen_space, Packed):
        raise UserError(
            f"observations are a picture of {spec.seen_space.picture} and numbers beside it, packed as bytes that a "
            "graph cannot read as numbers; export a bundle instead (--format bundle)"
        )
    if spec.backbone.predicts_returns:
        raise UserError(
            f"backbone {spec.model.backbone!r} asks itself for a return before it acts, in two passes that one graph "
            "does not hold; export a bundle instead (--format bundle)"
        )
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX graphs need {' and '.join(missing)}: pip install 'rayrl_dt[onnx]'")
    example = _example(model)
    # Two windows, since torch takes a batch of one for a constant.
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            _Flat(model).eval(),
            example,
            dynamo=True,
            verbose=False,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=tuple({0: batch} for _ in example),
        )
    assert program is not None
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    program.save(target / GRAPH)
    (target / HEADER).write_text(json.dumps({"spec": spec.to_json()}, indent=2))
    return target


class _Flat(nn.Module):
    """A policy as a function of plain tensors."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, observations: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the newest action and the outputs that it is taken from; see `export_onnx`."""
        model, head = self.model, self.model.spec.head
        window = Window(
            returns_to_go=returns_to_go,
            observations=observations,
            actions=actions,
            timesteps=timesteps,
            mask=mask,
        )
        outputs = head.read_out(self._guided(window))  # (B, O)
        action = model.in_env_units(head.mode(outputs))
        if isinstance(head, ContinuousHead):
            low, high = (torch.as_tensor(limit).to(action.dtype) for limit in head.limits)
            action = torch.clamp(action, low, high)
        return action, outputs

    def _guided(self, window: Window[Tensor]) -> Tensor:
        """Return what the head reads, `(B, O)`, guided as `rayrl_dt.policy.acting.guided` has it."""
        weight = self.model.spec.guidance
        if weight == 1:
            return self._raw(window)
        nothing = torch.full_like(window.returns_to_go, torch.nan)
        unasked = self._raw(replace(window, returns_to_go=nothing))
        return unasked if weight == 0 else self.model.spec.head.guided(self._raw(window), unasked, weight)

    def _raw(self, window: Window[Tensor]) -> Tensor:
        inputs = self.model.masked_inputs(window, window.mask)
        raw: Tensor = self.model.head(self.model.trunk(inputs, last_only=True))[:, -1]  # (B, 1, O) -> (B, O)
        return raw


def _example(model: SequenceModel) -> tuple[Tensor, ...]:
    """Return two windows that hold nothing, in the order of `INPUTS`."""
    spec = model.spec
    rows, seen = (2, spec.acts_on), spec.seen_space
    kind = torch.uint8 if encoder_of(seen, spec.model.encoder).raw else torch.float32
    actions = torch.float32 if spec.head.continuous else torch.int64
    return (
        torch.zeros(*rows, *(seen.shape or ()), dtype=kind),
        torch.zeros(*rows, *spec.head.shape, dtype=actions),
        torch.zeros(*rows, 1),
        torch.zeros(rows, dtype=torch.int64),
        torch.ones(rows, dtype=torch.bool),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from telling users what its own exporter will change one day."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
