"""LAMB, the optimizer of online finetuning: Adam whose step length follows the length of each decayed tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

__all__ = ["Lamb"]


class Lamb(Optimizer):
    """Layer-wise adaptive moments (You et al. 2020), in the form that Online Decision Transformer uses.

    For a tensor w: u = m / (sqrt(v) + eps) + weight_decay * w with Adam's bias-corrected moments m and v, then
    w <- w - lr * r * u with the trust ratio r = |w| / |u|, or 1 if either norm is 0. So a tensor moves by
    lr * |w|, whatever its gradient's scale. The ratio is not clipped. Without weight decay it is 1 for all tensors, as
    in the released code: that is Adam.

    Differs from the released code, which also clips the global gradient norm to 1 in here: clip before `step`.

    As with torch's fused optimizers weights stand still in a step where its attribute `found_inf`, a tensor `()`, is
    1. Moments and counts go on there: a run ends at such a step, and its last checkpoint is of before.

    Args:
        params: tensors, or groups of them.
        lr: step length relative to the length of each tensor.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled from the moments, but inside the trust ratio; 0 leaves that out.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every tensor that has a gradient; return what `closure` (which computes gradients) returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Move the tensors of one group."""
        beta1, beta2 = group["betas"]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        held: torch.Tensor | None = getattr(self, "found_inf", None)
        if held is not None:
            gradients = [gradient.masked_fill(held > 0, 0.0) for gradient in gradients]
        states = [self._advance(weight) for weight in weights]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)

        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, [(1 - beta2 ** state["step"]) ** 0.5 for state in states])
        torch._foreach_add_(scale, group["eps"])
        update = torch._foreach_div(first, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_div_(update, scale)
        if group["weight_decay"]:
            torch._foreach_add_(update, weights, alpha=group["weight_decay"])
            lengths = torch.stack(torch._foreach_norm(weights))
            steps = torch.stack(torch._foreach_norm(update))
            ratios = (lengths / steps).where((lengths > 0) & (steps > 0), 1.0)
            torch._foreach_mul_(update, list(ratios.unbind()))
        if held is not None:
            torch._foreach_mul_(update, 1.0 - held)
        torch._foreach_add_(weights, update, alpha=-group["lr"])

    def _advance(self, weight: torch.Tensor) -> dict[str, Any]:
        """Return the state of one tensor, its step counted."""
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        # A state that went through arrays holds a 0-dimensional tensor here.
        state["step"] = int(state["step"]) + 1
        return state
