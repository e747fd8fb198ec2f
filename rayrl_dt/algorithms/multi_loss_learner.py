"""A learner whose gradient step is several optimizer steps, each on a loss of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor, nn

from rayrl_dt import losses
from rayrl_dt.algorithms.learner import LOSS, SequenceLearner
from rayrl_dt.algorithms.rllib_internals import SeveralLosses
from rayrl_dt.errors import TrainingDiverged
from rayrl_dt.seeding import derive_seed
from rayrl_dt.types import Window

__all__ = ["CRITIC", "CRITIC_LOSS", "ENTROPY", "POLICY", "TEMPERATURE", "MultiLossLearner"]

# Optimizers. That of the policy follows the learning rate's schedule.
POLICY, CRITIC, TEMPERATURE = "policy", "critic", "temperature"
# Metrics, beside the temperature.
CRITIC_LOSS = "critic_loss"
ENTROPY = "entropy"


class MultiLossLearner(SeveralLosses, SequenceLearner):
    """What learners of a policy and a critic share; `_take_step` is theirs.

    Every loss moves the weights of its own optimizer and no others, and learners average their gradients.
    """

    def _register(self, module_id: str, name: str, optimizer: torch.optim.Optimizer, *, lr: float) -> None:
        """Register an optimizer with the parameters of its only group."""
        self.register_optimizer(
            module_id=module_id,
            optimizer_name=name,
            optimizer=optimizer,
            params=optimizer.param_groups[0]["params"],
            lr_or_lr_schedule=lr,
        )

    def gradient_step_on(self, batch: dict[str, Any]) -> Any:
        """One gradient step; learning rate and dropout masks follow from its number."""
        module, step = self.sequence_module, self.gradient_step
        for group in self.get_optimizer(DEFAULT_MODULE_ID, POLICY).param_groups:
            group["lr"] = self._lr(step)
        if not module.training:
            module.train()  # walks through every layer, so not at each step
        module.model.reseed(derive_seed(self.config.seed or 0, "dropout", self._rank, step))
        self._take_step(Window.from_dict(batch[DEFAULT_MODULE_ID]))
        self._add(LOSS, self._last_loss)
        self.gradient_step += 1
        self._updates += 1
        return {}, {DEFAULT_MODULE_ID: self._last_loss}, {}

    @abstractmethod
    def _take_step(self, window: Window[Tensor]) -> None:
        """Take the steps of all losses on windows, log them, and leaves the policy's loss in `_last_loss`."""

    def _apply(self, name: str, loss: Tensor, what: str, *, clip: float | None) -> Tensor:
        """Take one optimizer step; return the norm of the gradient before clipping."""
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID, name)
        parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        gradients, mean = self._averaged(self._gradients(loss, parameters), loss.detach())
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(mean)):
            raise TrainingDiverged(
                f"{what} became {float(mean):.3g} with a gradient of {float(norm):.3g} at gradient step "
                f"{self.gradient_step}; the last checkpoint is intact: lower training.lr or critic_lr"
            )
        if clip is not None:
            torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _gradients(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradients of `parameters` alone."""
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, parameters, strict=True)
        ]

    def _averaged(self, gradients: list[Tensor], loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradients and loss, averaged over the learners: a loss that diverges in one of them stops them all."""
        if self.config.num_learners <= 1:
            return gradients, loss
        tensors = [*gradients, loss]
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.config.num_learners
        pieces = flat.split([tensor.numel() for tensor in tensors])
        *averaged, mean = (piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True))
        return averaged, mean

    def _temperature_step(self, log_temperature: nn.Parameter, entropy: Tensor) -> Tensor:
        """One step of the entropy's temperature towards entropy = -A; returns the temperature from before it."""
        temperature = log_temperature.detach().exp()
        self._add(ENTROPY, entropy.detach())
        self._add(TEMPERATURE, temperature)
        aim = self.sequence_module.model.spec.head.target_entropy
        assert aim is not None
        balance = losses.temperature_loss(log_temperature, entropy, aim)
        self._apply(TEMPERATURE, balance, "the temperature's loss", clip=None)
        return temperature

    def _normal(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Draw standard normal numbers from a CPU generator, so that they are the same on every device."""
        return torch.randn(like.shape, generator=generator).to(like.device)
