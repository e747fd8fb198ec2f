"""A learner whose gradient step is several optimizer steps, each on a loss of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor, nn

from rayrl_dt import losses
from rayrl_dt.algorithms.critic_module import CriticRLModule
from rayrl_dt.algorithms.learner import GRAD_NORM, LOSS, SequenceLearner
from rayrl_dt.algorithms.policy_optimizer import adamw, optimizer_arguments, parameters_of
from rayrl_dt.algorithms.rllib_internals import SeveralLosses
from rayrl_dt.critics.guard import explosion, possible
from rayrl_dt.objectives.gradient import Batch, Trained
from rayrl_dt.seeding import derive_seed, torch_generator
from rayrl_dt.types import Window

__all__ = ["ENTROPY", "POLICY", "TEMPERATURE", "MultiLossLearner"]

# Optimizers, beside the critic's. That of the policy follows the learning rate's schedule.
POLICY, TEMPERATURE = "policy", "temperature"
# Metrics, beside the temperature.
ENTROPY = "entropy"
_LARGEST_REWARD = "largest_reward"


class MultiLossLearner(SeveralLosses, SequenceLearner):
    """What learners of a policy and a critic share; `_take_step` and `_trained` are theirs.

    Every loss moves the weights of its own optimizer and no others, and learners average their gradients.

    Attributes:
        noise: the name of the random numbers of gradient steps.
    """

    noise: ClassVar[str] = "online-noise"

    def build(self) -> None:
        """Build module and optimizers."""
        super().build()
        self.networks.begin_training()
        self._largest_reward = torch.tensor(float(self.config.largest_reward), device=self.device)

    @property
    def networks(self) -> CriticRLModule:
        """The policy's module, with its company."""
        module = self.sequence_module
        assert isinstance(module, CriticRLModule)
        return module

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register an optimizer for the policy, and AdamW for all else that is trained."""
        policy = self._policy_optimizer(optimizer_arguments(self.networks.model, self.config))
        found = {POLICY: (policy, config.lr)}
        for name, parameters, lr, decay in self._trained():
            adam = adamw(self.device, params=parameters, lr=lr, weight_decay=decay)
            found[name] = adam, lr
        for name, (optimizer, lr) in found.items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=optimizer,
                params=parameters_of(optimizer),
                lr_or_lr_schedule=lr,
            )

    def _policy_optimizer(self, arguments: dict[str, Any]) -> torch.optim.Optimizer:
        return adamw(self.device, **arguments)

    @abstractmethod
    def _trained(self) -> Iterable[Trained]:
        """Return what is trained beside the policy."""

    def gradient_step_on(self, batch: dict[str, Any]) -> Any:
        """One gradient step; learning rate and dropout masks follow from its number."""
        module, step, seed = self.sequence_module, self.gradient_step, self.config.seed or 0
        for group in self.get_optimizer(DEFAULT_MODULE_ID, POLICY).param_groups:
            group["lr"] = self._lr(step)
        if not module.training:
            module.train()  # walks through every layer, so not at each step
        module.model.reseed(derive_seed(seed, "dropout", self._rank, step))
        noise = torch_generator(seed, self.noise, self._rank, step)
        window = Window.from_dict(batch[DEFAULT_MODULE_ID])
        progress = min(1.0, step / self.expected_steps)
        self._take_step(Batch(window, module.model, noise, progress, module.precision))
        self.gradient_step += 1
        self.guard.stepped()
        return {}, {DEFAULT_MODULE_ID: self._last_loss}, {}

    @abstractmethod
    def _take_step(self, batch: Batch) -> None:
        """Take the steps of all losses on a batch."""

    def descend_policy(self, loss: Tensor) -> None:
        """Take the policy's step, and log it."""
        self.log(GRAD_NORM, self.descend(POLICY, loss, "the policy's loss", clip=self.config.grad_clip))
        self._last_loss = loss.detach()
        self.log(LOSS, self._last_loss)

    def descend(self, optimizer: str, loss: Tensor, what: str, *, clip: float | None = None) -> Tensor:
        """Take one step of an optimizer; return the norm of the gradient before clipping.

        Raises:
            TrainingDiverged: the loss or its gradient is NaN or infinite in any of the learners; see `DivergenceGuard`.
        """
        found = torch.autograd.grad(loss, self._parameters(optimizer), allow_unused=True)
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, self._parameters(optimizer), strict=True)
        ]
        return self.follow(optimizer, gradients, loss.detach(), what, clip=clip)

    def follow(
        self,
        optimizer: str,
        gradients: list[Tensor],
        loss: Tensor,
        what: str,
        *,
        clip: float | None = None,
    ) -> Tensor:
        """Take one step of an optimizer along gradients that are there already; see `descend`."""
        gradients, mean = self._averaged(gradients, loss)
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        step = self.gradient_step
        self.guard.check(
            torch.isfinite(norm) & torch.isfinite(mean),
            (mean, norm),
            lambda mean, norm: (
                f"{what} became {mean:.3g} with a gradient of {norm:.3g} at gradient step {step}; "
                "the last checkpoint is intact: lower training.lr or critic_lr"
            ),
        )
        if clip is not None:
            torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
        for parameter, gradient in zip(self._parameters(optimizer), gradients, strict=True):
            parameter.grad = gradient
        found = self.get_optimizer(DEFAULT_MODULE_ID, optimizer)
        self.guard.hold([found])
        found.step()
        found.zero_grad(set_to_none=True)
        return norm

    def _parameters(self, optimizer: str) -> list[nn.Parameter]:
        return parameters_of(self.get_optimizer(DEFAULT_MODULE_ID, optimizer))

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

    def check_values(self, mean: Tensor, paid: Tensor, *, gamma: float, reward_scale: float) -> None:
        """Check a critic's values; see `rayrl_dt.objectives.gradient.Bench`."""
        # One that stops alone leaves the others waiting for its next gradient.
        means, largest = self._from_all_learners(torch.stack([mean, reward_scale * paid.max()])).T
        self._largest_reward = torch.maximum(self._largest_reward, largest.max())
        step, mean, most = self.gradient_step, means.mean(), self._largest_reward / reward_scale
        self.guard.check(
            possible(mean, largest_reward=most, gamma=gamma),
            (mean, most),
            lambda mean, largest: explosion(
                mean,
                largest_reward=largest,
                step=step,
                remedy="the last checkpoint is intact: set critic_layer_norm: true, or lower critic_lr",
            ),
        )

    def _from_all_learners(self, values: Tensor) -> Tensor:
        """Return what each of the learners has, by rank: `(learners, ...)`."""
        if self.config.num_learners <= 1:
            return values[None]
        found = [torch.empty_like(values) for _ in range(self.config.num_learners)]
        torch.distributed.all_gather(found, values)
        return torch.stack(found)

    def _temperature_step(self, entropy: Tensor) -> Tensor:
        """One step of the entropy's temperature towards entropy = -A; returns the temperature from before it."""
        log_temperature = self.networks.log_temperature
        temperature = log_temperature.detach().exp()
        self.log(ENTROPY, entropy.detach())
        self.log(TEMPERATURE, temperature)
        aim = self.networks.model.spec.head.target_entropy
        assert aim is not None
        balance = losses.temperature_loss(log_temperature, entropy, aim)
        self.descend(TEMPERATURE, balance, "the temperature's loss")
        return temperature

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add the size of the largest reward, which may have left the replay."""
        return {**super().get_state(*args, **kwargs), _LARGEST_REWARD: float(self._largest_reward)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the state; see `SequenceLearner`."""
        super().set_state(state)
        if _LARGEST_REWARD in state:
            self._largest_reward = self._largest_reward.new_tensor(state[_LARGEST_REWARD])
