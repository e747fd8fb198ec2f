"""What a plan for acting is, the plan that asks the model about the whole window, and what cached plans share.

`SequenceModel.forward` defines what a policy does, and training uses it. A cached plan computes the same for the newest
step of windows that slide, up to rounding, with less work: see `decision_transformer` and `radt` beside this module.

Shape legend: N slots, K steps, P tokens of a step, T = P K tokens, d width, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.models.blocks import attention_bias
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.trunk import TrunkInputs
from rayrl_dt.policy.acting.cache import StepCache
from rayrl_dt.policy.acting.watch import ModelWatch
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.precision import autocast, dtype_of
from rayrl_dt.types import Window

__all__ = ["ActingPlan", "CachedPlan", "StepwisePlan", "WholeWindowPlan"]

Array = np.ndarray[Any, Any]


class ActingPlan(ABC):
    """Computes a policy's outputs at the newest step of N windows; unless told otherwise, by asking the model.

    Args:
        model: the policy network.
        context: the windows.
        precision: "fp32" or "bf16".
    """

    def __init__(self, model: SequenceModel, context: ContextBuffer, precision: str) -> None:
        self._model, self._context, self._precision = model, context, precision

    @abstractmethod
    def holds(self) -> bool:
        """Return whether the plan still does what the model says; if not, make a new one."""

    @abstractmethod
    def clear(self, slots: Array) -> None:
        """Learn that the windows of some slots were emptied (index array or boolean mask)."""

    def outputs(self, rows: Array | None) -> Tensor:
        """Return the outputs of `SequenceModel.forward` at the newest step, `(N, O)`.

        Args:
            rows: indices of the slots that are wanted; None for all.
        """
        with torch.no_grad(), autocast(self._device, self._precision):
            outputs: Tensor = self._model(self._window(rows), last_only=True)[:, -1]  # (N, 1, O) -> (N, O)
        return outputs

    def outputs_for(self, shifts: Tensor, rows: Array | None) -> Tensor:
        """Return the outputs had other returns been asked for, `(M, n, O)`.

        Args:
            shifts: `(M, n)` raw, what is added to every return-to-go of a window; so the rewards that the window tells
                of stay what they were. NaN asks for nothing, of a policy with return dropout.
            rows: as for `outputs`.
        """
        return self.read_out(self.raw_for(shifts, rows))

    def raw_for(self, shifts: Tensor, rows: Array | None) -> Tensor:
        """Return what `outputs_for` does, before the head reads it."""
        with torch.no_grad(), autocast(self._device, self._precision):
            window = self._window(rows)
            # (M, n, K, 1)
            returns = window.returns_to_go + shifts.to(self._device, torch.float32)[..., None, None]
            return self._model.raw_for(window, returns, last_only=True)[:, :, -1]  # (M, n, 1, O)

    def read_out(self, raw: Tensor) -> Tensor:
        """Return the outputs `(..., O)` for what the head's layer gave, `(..., O)`."""
        return self._model.spec.head.read_out(raw)

    def _window(self, rows: Array | None) -> Window[Tensor]:
        """Return the windows that the model is asked about."""
        return self._context.window(rows).to_torch(self._device)

    @property
    def _device(self) -> torch.device:
        return self._model.head.weight.device


class WholeWindowPlan(ActingPlan):
    """Calls the model on the whole windows: for every backbone and device, and where hooks are to see them.

    Args:
        model: the policy network.
        context: the windows.
        precision: "fp32" or "bf16" (autocast).
        holds: whether the model can be acted for in no other way.
    """

    def __init__(
        self, model: SequenceModel, context: ContextBuffer, precision: str, holds: Callable[[], bool]
    ) -> None:
        super().__init__(model, context, precision)
        self._holds = holds

    def holds(self) -> bool:
        """Return whether there is still no quicker way; changed weights make no difference."""
        return self._holds()

    def clear(self, slots: Array) -> None:
        """Do nothing: all is in the windows."""


class StepwisePlan(ActingPlan):
    """Keeps values of single steps for as long as the windows hold them, and until the model changes.

    Args:
        model: the policy network, in float32 on a CPU. A change of it ends the plan.
        context: the windows.
        precision: "fp32" or "bf16".
    """

    def __init__(self, model: SequenceModel, context: ContextBuffer, precision: str) -> None:
        super().__init__(model, context, precision)
        self._watch = ModelWatch(model)
        self._cache: StepCache | None = None
        self._synced = 0  # steps of the context that the cache has seen

    @abstractmethod
    def _newest_values(self, steps: int) -> list[Tensor]:
        """Compute what is to be kept of the newest steps of all windows, `(N, at least steps, *shape)` each."""

    def holds(self) -> bool:
        """Return whether the model is unchanged, and no hook wants to see its forward pass."""
        return self._watch.unchanged()

    def clear(self, slots: Array) -> None:
        """Forget the steps of some slots. Weights of zero would hide them, but not a NaN among them."""
        if self._cache is not None:
            with torch.inference_mode():
                self._cache.clear(slots)

    def _catch_up(self) -> StepCache:
        """Keep the steps that came since the last call, too."""
        length = self._context.context_length
        steps = min(self._context.appended - self._synced, length)
        self._synced = self._context.appended
        values = self._newest_values(steps)
        if self._cache is None:
            self._cache = StepCache(len(values[0]), length, values)
        self._cache.advance(steps)
        self._cache.write(values)
        return self._cache


class CachedPlan(StepwisePlan):
    """Keeps what is a function of single steps, and computes from it what the steps of a window make of each other.

    A step's values are computed when it is appended, and once more after the next one, when its action is known.
    Residual stream, norms, softmax, embedding and head are float32; products and attention have the acting precision.

    Args:
        model: the policy network, in float32 on a CPU. A change of it ends the plan.
        context: the windows.
        precision: "fp32" or "bf16".
        tokens_per_step: P, of the sequence that attends to itself.
    """

    def __init__(
        self, model: SequenceModel, context: ContextBuffer, precision: str, tokens_per_step: int
    ) -> None:
        super().__init__(model, context, precision)
        self.dtype = dtype_of(precision)
        self._tokens_per_step = tokens_per_step
        self._causal = {steps: self._bias(None, steps) for steps in (1, tokens_per_step)}

    @abstractmethod
    def step_values(self, inputs: TrunkInputs) -> list[Tensor]:
        """Return all that is kept of some steps, as functions of each by itself: `(N, steps, *shape)` each."""

    @abstractmethod
    def features(self, kept: list[Tensor], mask: Tensor | None) -> Tensor:
        """Return the trunk's features `(B, 1, d)` at the newest step.

        Args:
            kept: `step_values` of the windows, `(B, K, *shape)` each; anything finite where there is padding.
            mask: `(B, K)` bool, True at real steps; None if there is no padding.
        """

    def outputs(self, rows: Array | None) -> Tensor:
        """Return the outputs; see `ActingPlan.outputs`."""
        with torch.inference_mode():
            return self._model.read_out(self.newest(rows)[:, -1])  # (N, 1, d) -> (N, O)

    def newest(self, rows: Array | None) -> Tensor:
        """Return the trunk's features `(n, 1, d)` at the newest step of some slots."""
        kept = self._catch_up().window(rows)
        mask = self._context.window(rows).mask
        return self.features(kept, None if mask.all() else torch.from_numpy(mask))

    def bias(self, mask: Tensor | None, tokens_per_step: int) -> Tensor:
        """Return `attention_bias` without its dimension of heads, `(1 or B, T, T)`, in the acting precision."""
        return self._causal[tokens_per_step] if mask is None else self._bias(mask, tokens_per_step)

    def _bias(self, mask: Tensor | None, tokens_per_step: int) -> Tensor:
        tokens = self._context.context_length * tokens_per_step
        # (1 or N, 1, T, T) -> (1 or N, T, T)
        return attention_bias(mask, tokens, tokens_per_step, torch.empty(0, dtype=self.dtype))[:, 0]

    def _newest_values(self, steps: int) -> list[Tensor]:
        """Compute the steps that came, and the one before, whose action is known by now."""
        newest = self._context.window().last(min(steps + 1, self._context.context_length)).to_torch()
        return self.step_values(self._model.inputs(newest))
