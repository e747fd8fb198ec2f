"""The policy network: normalization, trunk and head in one module; raw units outside, model units inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rayrl_dt.errors import UserError
from rayrl_dt.models.convformer import ConvFormerTrunk
from rayrl_dt.models.decision_transformer import MLPTrunk, TransformerTrunk
from rayrl_dt.models.dropout import DropoutSource
from rayrl_dt.models.radt import RADTTrunk
from rayrl_dt.models.reinformer import ReinformerTrunk
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.starformer import StARformerTrunk
from rayrl_dt.models.trunk import Trunk, TrunkInputs
from rayrl_dt.types import ACTION_LIMIT, Window

__all__ = ["SequenceModel", "check_architecture"]

_TRUNKS: dict[str, Callable[[PolicySpec, DropoutSource], Trunk]] = {
    "dt": lambda spec, source: TransformerTrunk(spec, with_returns=True, source=source),
    "radt": lambda spec, source: RADTTrunk(spec, source=source),
    "convformer": lambda spec, source: ConvFormerTrunk(spec, source=source),
    "starformer": lambda spec, source: StARformerTrunk(spec, source=source),
    "reinformer": lambda spec, source: ReinformerTrunk(spec, source=source),
    "no-return": lambda spec, source: TransformerTrunk(spec, with_returns=False, source=source),
    "mlp": lambda spec, source: MLPTrunk(spec, source=source),
}


class SequenceModel(nn.Module):
    """A return-conditioned policy over context windows.

    Inputs are raw windows; outputs are in head units: actions in [-1, 1] after tanh, parameters of a squashed Gaussian
    (`gaussian` reads them), or logits.

    Attributes:
        spec: what the model is made of.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_middle: Tensor
    action_half: Tensor

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.spec = spec
        self._dropout_source = DropoutSource()
        self.trunk = _TRUNKS[spec.model.backbone](spec, self._dropout_source)
        self.head = nn.Linear(spec.model.embed_dim, spec.action_size * (2 if spec.gaussian else 1))
        if spec.gaussian:
            _initialize_gaussian(self.head)
        else:
            self.trunk.initialize_head(self.head)
        # Buffers, so that a checkpoint of the weights alone still acts right.
        self.register_buffer("observation_mean", torch.as_tensor(spec.normalizer.mean))
        self.register_buffer("observation_std", torch.as_tensor(spec.normalizer.std))
        low, high = (
            np.array(bound, spec.action_space.dtype) for bound in (spec.action_low, spec.action_high)
        )
        self._action_bounds = low, high
        middle, half = (low.astype(np.float64) + high) / 2, (high.astype(np.float64) - low) / 2
        self.register_buffer("action_middle", torch.tensor(middle, dtype=torch.float32))
        self.register_buffer("action_half", torch.tensor(half, dtype=torch.float32))

    def reseed(self, seed: int) -> None:
        """Make the dropout masks of the next training forward a function of `seed`."""
        self._dropout_source.reseed(seed)

    def forward(self, window: Window[Tensor], *, last_only: bool = False) -> Tensor:
        """Predict the action of each step.

        Args:
            window: raw window of K steps; the action in the last slot is not read.
            last_only: compute the last step only (acting).

        Returns:
            `(B, P, A)` actions in [-1, 1], `(B, P, 2A)` raw parameters of a Gaussian head, or `(B, P, n)` logits, for
            the last P steps of the window: P is 1 with `last_only` and for the MLP, else K.
        """
        return self.read_out(self.trunk(self.inputs(window), last_only=last_only))

    def read_out(self, features: Tensor) -> Tensor:
        """Return the outputs, see `forward`, for features `(..., d)` of the trunk."""
        outputs: Tensor = self.head(features)
        return outputs if self.spec.discrete or self.spec.gaussian else torch.tanh(outputs)

    def gaussian(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean before the tanh and the log standard deviation in [-5, 2], `(..., A)` in float32 each.

        Args:
            outputs: `(..., 2A)` of a Gaussian head.
        """
        mean, raw = torch.chunk(outputs.float(), 2, dim=-1)
        return mean, -5.0 + 3.5 * (torch.tanh(raw) + 1.0)

    def to_model_units(self, outputs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions `(..., A)` in [-1, 1] for the outputs of a continuous head.

        Args:
            outputs: `(..., A)`, or `(..., 2A)` of a Gaussian head.
            noise: `(..., A)` standard normal, which draws from a Gaussian head; None takes tanh(mean). A
                deterministic head ignores it.
        """
        if not self.spec.gaussian:
            return outputs
        mean, log_std = self.gaussian(outputs)
        drawn = mean if noise is None else mean + log_std.exp() * noise
        return torch.tanh(drawn).clamp(-ACTION_LIMIT, ACTION_LIMIT)

    def inputs(self, window: Window[Tensor]) -> TrunkInputs:
        """Convert a raw window to model units; padding becomes zero in model units."""
        mask = None if bool(window.mask.all()) else window.mask
        dtype = self.head.weight.dtype
        actions = self.to_model_actions(window.actions)
        if self.spec.discrete:
            # The unread last slot holds 0 while acting, which need not be an action.
            actions = actions.clamp(0, self.spec.action_size - 1)
        return TrunkInputs(
            returns_to_go=_blank((window.returns_to_go / self.spec.return_scale).to(dtype), mask),
            observations=_blank(self.to_model_observations(window.observations), mask),
            actions=_blank(actions, mask),
            timesteps=_blank(window.timesteps, mask),
            mask=mask,
        )

    def to_model_observations(self, observations: Tensor) -> Tensor:
        """Normalize raw observations `(..., *obs)`."""
        normalized = (observations - self.observation_mean) / self.observation_std
        return normalized.to(self.head.weight.dtype)

    def to_model_actions(self, actions: Tensor) -> Tensor:
        """Convert environment actions to indices from 0, or to [-1, 1] (clipped).

        What padding holds, for instance 0, need not be an index.
        """
        if isinstance(self.spec.action_space, gym.spaces.Discrete):
            return actions - int(self.spec.action_space.start)
        scaled = (actions - self.action_middle) / self.action_half
        return scaled.clamp(-1.0, 1.0).to(self.head.weight.dtype)

    def to_env_actions(
        self,
        outputs: Tensor,
        *,
        sample: torch.Generator | None = None,
        refine: Callable[[Tensor], Tensor] | None = None,
    ) -> np.ndarray[Any, Any]:
        """Convert head outputs `(B, A, 2A or n)` to environment actions `(B, A)` or `(B,)`.

        Args:
            outputs: of one step.
            sample: draw from the softmax, or from the squashed Gaussian, with this generator; None takes the most
                likely action, or tanh(mean). A deterministic head has nothing to draw.
            refine: maps continuous actions `(B, A)` in [-1, 1] to those to take instead; None takes them.
        """
        if isinstance(self.spec.action_space, gym.spaces.Discrete):
            if sample is None:
                index = outputs.argmax(dim=-1)
            else:
                probabilities = outputs.float().softmax(dim=-1).cpu()
                index = torch.multinomial(probabilities, 1, generator=sample)[:, 0]
            return index.cpu().numpy() + int(self.spec.action_space.start)
        noise = None
        if sample is not None and self.spec.gaussian:
            shape = (len(outputs), self.spec.action_size)
            noise = torch.randn(shape, generator=sample, device=sample.device).to(outputs.device)
        inside = self.to_model_units(outputs, noise).float()
        if refine is not None:
            inside = refine(inside)
        values = (inside * self.action_half + self.action_middle).cpu().numpy()
        low, high = self._action_bounds
        # Rounding may step over a bound.
        actions: np.ndarray[Any, Any] = np.clip(values.astype(low.dtype), low, high)
        return actions


def _initialize_gaussian(head: nn.Linear) -> None:
    """Make mean and pre-log-std orthogonal maps of their own with bias 0, as the authors of Online DT do."""
    for part in torch.chunk(head.weight.detach(), 2):
        nn.init.orthogonal_(part)
    nn.init.zeros_(head.bias)


def _blank(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return `(B, K, ...)` with zeros at padding, whatever it held; NaN times 0 would stay NaN."""
    if mask is None:
        return values
    return values.masked_fill(~mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim())), 0)


def check_architecture(expected: Mapping[str, Any], found: Mapping[str, Any], *, source: str) -> None:
    """Check that two state dicts have the same names and shapes.

    Args:
        expected: the network's own.
        found: what is about to be loaded, as tensors or arrays.
        source: where that comes from, for the message.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape.
    """
    own = {name: tuple(np.shape(value)) for name, value in expected.items()}
    other = {name: tuple(np.shape(value)) for name, value in found.items()}
    if own == other:
        return
    name = next(n for n in sorted({*own, *other}) if own.get(n) != other.get(n))
    raise UserError(
        f"{source} holds another architecture: {name} is {other.get(name, 'absent')} there and "
        f"{own.get(name, 'absent')} in the model; use the model_config that it was trained with"
    )
