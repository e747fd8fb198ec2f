"""Acting on the return that the policy itself predicts (Reinformer), with as much context as its predictions ask for.

Two forwards a step: the first predicts R_t from the context up to s_t, the second acts on it. The context then holds
the predicted returns, not what was asked for or what is left of it.

How many steps are acted on (`ModelConfig.context_rule`), K at most:

    consecutive   w = 1, and w + 1 as long as R_{t-w} > R_{t-w+1}: back to where the predictions began to fall
    newest        the same with R_{t-w} > R_t
    elastic       the w of 1..K whose context predicts the highest R_t (Wu et al. 2023, Elastic Decision Transformer)
    whole         K

The first two are readings of the Action Gradient paper (Lin et al. 2025), which extends the context "while" the
prediction before was higher and leaves open what it is compared with. It does not say either what R_t itself is
predicted from: here from one step more than the step before acted on. Elastic DT proper has a maximal-return estimate
of its own and tries lengths some steps apart; here it is the return network, and all lengths.

Shape legend: N rows (slots), K steps, T some steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.trunk import ReturnPredictor
from rayrl_dt.policy.acting.plan import ActingPlan
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.precision import autocast
from rayrl_dt.types import Window

__all__ = ["PredictedReturnPlan", "falling_length"]

Array = np.ndarray[Any, Any]


def falling_length(returns: Array, mask: Array, rule: str) -> Array:
    """Return how many of the newest steps to act on, `(N,)`; 0 where the newest is padding.

    Args:
        returns: `(N, T)` predicted returns-to-go.
        mask: `(N, T)` bool, True at real steps.
        rule: "consecutive" or "newest"; see the module.
    """
    if returns.shape[1] == 0:
        return np.zeros(len(returns), np.int64)
    compared = returns[:, 1:] if rule == "consecutive" else returns[:, -1:]
    higher = (returns[:, :-1] > compared) & mask[:, :-1]
    run: Array = np.cumprod(higher[:, ::-1], axis=1, dtype=np.int64).sum(axis=1)
    length: Array = mask[:, -1] * (1 + run)
    return length


class PredictedReturnPlan(ActingPlan):
    """Predicts the newest return, writes it into the windows, and calls the model on them.

    Everything is in the windows, so nothing is to be forgotten, and changed weights make no difference.

    Args:
        model: the policy network, of a backbone that predicts returns.
        context: the windows; their newest return-to-go is overwritten.
        precision: "fp32" or "bf16" (autocast).
    """

    def __init__(self, model: SequenceModel, context: ContextBuffer, precision: str) -> None:
        super().__init__(model, context, precision)
        self._rule = model.spec.model.context_rule

    def holds(self) -> bool:
        """Return always: there is no quicker way."""
        return True

    def clear(self, slots: Array) -> None:
        """Do nothing: all is in the windows."""

    def outputs(self, rows: Array | None) -> Tensor:
        """Return the model's outputs for the returns that it predicts; see `ActingPlan.outputs`."""
        with torch.no_grad(), autocast(self._model.head.weight.device, self._precision):
            lengths, returns = self._predict(self._context.window(rows))
            self._context.set_returns(returns, rows)
            window = self._context.window(rows)
            if self._rule in ("consecutive", "newest"):
                lengths = falling_length(window.returns_to_go[..., 0], window.mask, self._rule)
            # (N, 1, O) -> (N, O)
            outputs: Tensor = self._model(self._cut(window, lengths), last_only=True)[:, -1]
        return outputs

    def _predict(self, window: Window[Array]) -> tuple[Array, Array]:
        """Return the steps `(N,)` that the newest return is predicted from, and that return `(N,)`, raw."""
        slots, steps = window.mask.shape
        if self._rule == "elastic":
            # (K, N)
            tried = np.stack([self._returns(window, np.full(slots, 1 + index)) for index in range(steps)])
            best = tried.argmax(axis=0)  # (N,)
            return 1 + best, tried[best, np.arange(slots)]
        if self._rule == "whole":
            lengths = np.full(slots, steps)
        else:
            lengths = 1 + falling_length(window.returns_to_go[:, :-1, 0], window.mask[:, :-1], self._rule)
        return lengths, self._returns(window, lengths)

    def _returns(self, window: Window[Array], lengths: Array) -> Array:
        trunk = self._model.trunk
        assert isinstance(trunk, ReturnPredictor)
        # (N, 1)
        scaled = trunk.predict_returns(self._model.inputs(self._cut(window, lengths)), last_only=True)
        raw: Array = scaled[:, -1].float().cpu().numpy() * self._model.spec.return_scale
        return raw

    def _cut(self, window: Window[Array], lengths: Array) -> Window[Tensor]:
        """Return the windows with the newest `lengths` `(N,)` steps alone, as long as the longest."""
        steps = window.mask.shape[1]
        kept = window.mask & (np.arange(steps) >= steps - lengths[:, None])  # (N, K)
        shortest = replace(window, mask=kept).last(int(lengths.max()))
        return shortest.to_torch(self._model.head.weight.device)
