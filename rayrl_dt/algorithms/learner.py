"""The supervised learner: window batches in, one AdamW step each, all a function of the gradient step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from rayrl_dt import precision
from rayrl_dt.algorithms.divergence import DivergenceGuard
from rayrl_dt.algorithms.module import PREDICTIONS, RETURNS, SequenceRLModule
from rayrl_dt.algorithms.offline_data import BatchSource
from rayrl_dt.algorithms.policy_optimizer import adamw, optimizer_arguments, parameters_of
from rayrl_dt.algorithms.rllib_internals import RLlibLearner
from rayrl_dt.algorithms.step_means import StepMeans
from rayrl_dt.objectives.imitation import return_loss
from rayrl_dt.objectives.objective import Objective
from rayrl_dt.precision import keep_freed_memory
from rayrl_dt.seeding import derive_seed
from rayrl_dt.types import Window

__all__ = [
    "GRADIENT_STEPS",
    "GRAD_NORM",
    "LEARNING_RATE",
    "LOSS",
    "RETURN_LOSS",
    "SequenceLearner",
    "scheduled_lr",
]

GRADIENT_STEPS = "gradient_steps"
LOSS = "loss"
RETURN_LOSS = "return_loss"
GRAD_NORM = "grad_norm"
LEARNING_RATE = "lr"
_MEANS = "step_means"


def scheduled_lr(
    lr: float,
    gradient_step: int,
    *,
    warmup_steps: int,
    schedule: str = "constant",
    total_steps: int = 0,
    floor: float = 0.0,
) -> float:
    """Return the learning rate of a gradient step (from 0): linear warm-up, then constant or a cosine to a floor.

    The warm-up is `lr * min((step + 1) / warmup_steps, 1)`, as in Decision Transformer's released code, which then
    stays constant. The cosine falls from the end of the warm-up to zero at `total_steps`: with few steps the last
    checkpoint is then worth more than whichever one the noise of a constant rate happens to end on. The rate never
    falls below the share `floor`, as in that code for Atari.
    """
    warm = min((gradient_step + 1) / max(warmup_steps, 1), 1.0)
    if schedule == "constant" or gradient_step < warmup_steps:
        return lr * warm
    progress = min((gradient_step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return lr * max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))


class SequenceLearner(RLlibLearner):
    """Fits the policy to the actions of the data, in the light of a frozen critic if the objective asks one.

    Attributes:
        gradient_step: gradient steps taken; saved, and the only clock of warm-up, batches and dropout.
        observer: called with (gradient step, loss) after each step; returning False ends the iteration. The loss is
            where it was computed: who reads it waits for the device.
        guard: finds what has diverged.
        expected_steps: gradient steps of the whole run, as far as they are known: where the cosine ends.
    """

    observer: Callable[[int, Tensor], bool] | None = None

    def build(self) -> None:
        """Build the module and its optimizer."""
        super().build()
        keep_freed_memory()
        self.gradient_step = 0
        self.expected_steps: int = self.config.gradient_steps
        self._rank = torch.distributed.get_rank() if self.config.num_learners > 1 else 0
        self._means = StepMeans()
        self.guard = DivergenceGuard(self.device)
        self._last_loss = torch.zeros(())
        self._objective: Objective = self.config.training_objective
        self.sequence_module.precision = precision.resolve(self.config.precision, self.device)

    @property
    def sequence_module(self) -> SequenceRLModule:
        """The policy's module, out of its DDP wrapper."""
        module: SequenceRLModule = self.module[DEFAULT_MODULE_ID].unwrapped()
        return module

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register AdamW; see `TrainingSettings` for what decays."""
        # A frozen critic is no business of the optimizer.
        arguments = optimizer_arguments(self.module[module_id], config)
        optimizer = adamw(self.device, **arguments)
        self.register_optimizer(
            module_id=module_id,
            optimizer=optimizer,
            params=parameters_of(optimizer),
            lr_or_lr_schedule=config.lr,
        )

    def batches(self, source: BatchSource, count: int) -> Iterator[Window[Tensor]]:
        """Yield the batches of the next gradient steps; an observer may end them."""
        for window in source.batches(rank=self._rank, first_step=self.gradient_step, count=count):
            yield window.to_torch(self.device)
            if self.observer is not None and not self.observer(self.gradient_step, self._last_loss):
                return

    def gradient_step_on(self, batch: dict[str, Any]) -> Any:
        """One gradient step; learning rate and dropout masks follow from its number."""
        lr = self._lr(self.gradient_step)
        for _, optimizer in self.get_optimizers_for_module(DEFAULT_MODULE_ID):
            for group in optimizer.param_groups:
                group["lr"] = lr
        seed = derive_seed(self.config.seed or 0, "dropout", self._rank, self.gradient_step)
        self.sequence_module.model.reseed(seed)
        result = super().gradient_step_on(batch)
        self.gradient_step += 1
        self.guard.stepped()
        return result

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """Return the objective's loss over the real steps of the batch, that of predicted returns included."""
        window, module = Window.from_dict(batch), self.sequence_module
        model = module.model
        terms = self._objective(model, module.judge, fwd_out[PREDICTIONS], window)
        loss = terms.loss
        for name, value in terms.logged.items():
            self.log(name, value)
        if RETURNS in fwd_out:
            predicted = return_loss(model, fwd_out[RETURNS], window)
            self.log(RETURN_LOSS, predicted.detach())
            loss = loss + predicted
        self._last_loss = loss.detach()
        self.log(LOSS, self._last_loss)
        return loss

    def postprocess_gradients(self, gradients_dict: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """Clip the global gradient norm.

        Raises:
            TrainingDiverged: the norm is NaN or infinite; the weights have not been touched. See `DivergenceGuard`.
        """
        gradients = [gradient for gradient in gradients_dict.values() if gradient is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        step = self.gradient_step
        self.guard.check(
            torch.isfinite(norm),
            (norm,),
            lambda norm: (
                f"the gradient became {norm} at gradient step {step}; the weights before it are intact: "
                "lower training.lr, or look for extreme values with `rayrl-dt data preview`"
            ),
        )
        self.guard.hold(optimizer for _, optimizer in self.get_optimizers_for_module(DEFAULT_MODULE_ID))
        if self.config.grad_clip is not None:
            scale = (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        self.log(GRAD_NORM, norm)
        return gradients_dict

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Log the step count.

        Raises:
            TrainingDiverged: it was found on a device; see `DivergenceGuard`.
        """
        self.guard.read()
        # Not the mean over calls and learners, as of others.
        self.metrics.log_value(
            (DEFAULT_MODULE_ID, GRADIENT_STEPS), self.gradient_step, reduce="max", window=1
        )

    def take_means(self) -> dict[str, float]:
        """Return the means over the steps since the last time that logged something, and the last learning rate."""
        return {**self._means.take(), LEARNING_RATE: self._lr(max(0, self.gradient_step - 1))}

    def _lr(self, gradient_step: int) -> float:
        return scheduled_lr(
            self.config.lr,
            self._policy_steps(gradient_step),
            warmup_steps=self.config.warmup_steps,
            schedule=self.config.lr_decay,
            total_steps=self._policy_steps(self.config.lr_decay_steps or self.expected_steps),
            floor=self.config.lr_floor,
        )

    def _policy_steps(self, gradient_steps: int) -> int:
        """Return how many steps the policy takes in so many gradient steps: the clock of its learning rate."""
        return gradient_steps

    def log(self, key: str, value: Tensor) -> None:
        """Add a value to the mean that is logged."""
        self._means.add(key, value)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add the gradient step and the last means to RLlib's state."""
        own = {GRADIENT_STEPS: self.gradient_step, _MEANS: dict(self._means.last)}
        return {**super().get_state(*args, **kwargs), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the state; see `RLlibLearner`."""
        super().set_state(state)
        self.gradient_step = int(state.get(GRADIENT_STEPS, self.gradient_step))
        self._means.begin()
        self._means.last = dict(state.get(_MEANS, self._means.last))
        self._last_loss = torch.tensor(self._means.last.get(LOSS, 0.0))
        self.guard = DivergenceGuard(self.device)  # what diverged is no more
