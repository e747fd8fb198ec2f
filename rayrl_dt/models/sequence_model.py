"""The policy network: normalization, trunk and head in one module; raw units outside, model units inside.

Shape legend: B batch, K steps of a window, P steps that are predicted, d width, O outputs of a step, A action
dimensions, F features of an observation; `*obs` observation shape. Discrete actions have no axis A.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayrl_dt import devices
from rayrl_dt.errors import UserError
from rayrl_dt.models.dropout import DropoutSource
from rayrl_dt.models.encoders import Encoder, encoder_of
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.trunk import ReturnBlindTrunk, TrunkInputs
from rayrl_dt.seeding import numpy_generator
from rayrl_dt.types import Window

__all__ = ["SequenceModel", "check_architecture", "check_finite", "check_shapes"]


class SequenceModel(nn.Module):
    """A return-conditioned policy over context windows.

    Inputs are raw windows; what the outputs are, and how actions are taken from them, knows `spec.head`.

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
        self._raw = encoder_of(spec.seen_space, spec.model.encoder).raw
        self._dropout_source = DropoutSource()
        self._dropping = numpy_generator(0, "return-dropout")
        with _finding_memory(spec.model):
            self.trunk = spec.backbone.build(spec, self._dropout_source)
            self.head = spec.head.layer(spec.model.embed_dim, self.trunk.initialize_head)
        for module in self.trunk.modules():
            if isinstance(module, Encoder):
                module.normalize_with(spec.normalizer)
        # Buffers, so that a checkpoint of the weights alone still acts right.
        self.register_buffer("observation_mean", torch.tensor(spec.normalizer.mean))
        self.register_buffer("observation_std", torch.tensor(spec.normalizer.std))
        low, high = spec.head.low, spec.head.high
        middle, half = (low.astype(np.float64) + high) / 2, (high.astype(np.float64) - low) / 2
        self.register_buffer("action_middle", torch.tensor(middle, dtype=torch.float32))
        self.register_buffer("action_half", torch.tensor(half, dtype=torch.float32))

    def reseed(self, seed: int) -> None:
        """Make the dropout masks of the next training forward, and the returns that are dropped, follow from `seed`."""
        self._dropout_source.reseed(seed)
        if self.spec.model.return_dropout > 0:
            self._dropping = numpy_generator(seed, "return-dropout")

    def dropping_returns(self, window: Window[Tensor]) -> Window[Tensor]:
        """Return raw windows of which some ask for nothing: their returns are NaN. They are drawn anew at each call.

        Without return dropout, and outside of training, they are the windows as they came.
        """
        share = self.spec.model.return_dropout
        if share == 0 or not self.training:
            return window
        drawn = torch.from_numpy(self._dropping.random(window.batch_size) < share)  # (B,)
        dropped = devices.on_device(drawn, window.mask.device)[:, None, None]
        return replace(window, returns_to_go=window.returns_to_go.masked_fill(dropped, torch.nan))

    def forward(self, window: Window[Tensor], *, last_only: bool = False) -> Tensor:
        """Predict the action of each step.

        Args:
            window: raw window of K steps; the action in the last slot is not read.
            last_only: compute the last step only (acting).

        Returns:
            `(B, P, O)` outputs, which `spec.head` reads, for the last P steps of the window: P is 1 with `last_only`
            and for the MLP, else K.
        """
        return self.read_out(self.trunk(self.inputs(window), last_only=last_only))  # (B, P, d) -> (B, P, O)

    def outputs_for(
        self, window: Window[Tensor], returns_to_go: Tensor, *, last_only: bool = False
    ) -> Tensor:
        """Predict the actions of each step for several courses of returns, with the same dropout masks.

        One pass of the trunk serves them all where it reads no return; elsewhere each takes one of its own.

        Args:
            window: raw window; its own returns are not read.
            returns_to_go: `(M, B, K, 1)` raw; NaN asks for nothing, of policies with return dropout.
            last_only: as for `forward`.

        Returns:
            `(M, B, P, O)`, in each course what `forward` returns for a window with those returns.
        """
        return self.spec.head.read_out(self.raw_for(window, returns_to_go, last_only=last_only))

    def raw_for(self, window: Window[Tensor], returns_to_go: Tensor, *, last_only: bool = False) -> Tensor:
        """Return what `outputs_for` does, before the head reads it: of a deterministic one, before its tanh."""
        inputs = self.inputs(window)
        scaled = (returns_to_go / self.spec.return_scale).to(inputs.returns_to_go.dtype)  # (M, B, K, 1)
        if inputs.mask is not None:
            scaled = scaled.masked_fill(~inputs.mask[..., None], 0)
        if isinstance(self.trunk, ReturnBlindTrunk):
            context = self.trunk.context(inputs, last_only=last_only)  # (B, P, d)
            found: Tensor = self.head(self.trunk.ask(context, scaled[:, :, -context.shape[1] :]))
            return found
        if not self.training:
            # Nothing is drawn, and one forward of many windows takes less than many of few.
            together = inputs.repeated(len(scaled), scaled.flatten(0, 1))  # (M B, K, ...)
            raw = self.head(self.trunk(together, last_only=last_only))  # (M B, P, O)
            return torch.unflatten(raw, 0, (len(scaled), -1))

        def asked(returns: Tensor) -> Tensor:
            raw: Tensor = self.head(self.trunk(replace(inputs, returns_to_go=returns), last_only=last_only))
            return raw  # (B, P, O)

        return self._dropout_source.same_for_each(asked, scaled)

    def guided_for(self, window: Window[Tensor], returns_to_go: Tensor, *, last_only: bool = False) -> Tensor:
        """Predict the actions of each step as the policy acts, guided; see `rayrl_dt.policy.guidance`.

        Args:
            window: raw window; its own returns are not read.
            returns_to_go: `(B, K, 1)` raw.
            last_only: as for `forward`.

        Returns:
            `(B, P, O)`, what `forward` returns for a window with those returns if nothing guides it.
        """
        weight, head = self.spec.guidance, self.spec.head
        if weight == 1:
            outputs: Tensor = self(replace(window, returns_to_go=returns_to_go), last_only=last_only)
            return outputs
        courses = torch.stack([returns_to_go, torch.full_like(returns_to_go, torch.nan)])  # (2, B, K, 1)
        asked, unasked = self.raw_for(window, courses, last_only=last_only)  # (B, P, O) each
        return head.read_out(head.guided(asked, unasked, weight))

    def read_out(self, features: Tensor) -> Tensor:
        """Return the outputs, see `forward`, for features `(..., d)` of the trunk."""
        return self.spec.head.read_out(self.head(features))

    def inputs(self, window: Window[Tensor]) -> TrunkInputs:
        """Convert a raw window to model units; padding becomes zero in model units."""
        # A look at the mask is worth it where it costs nothing.
        full = devices.reads_are_free(window.mask.device) and bool(window.mask.all())
        return self.masked_inputs(window, None if full else window.mask)

    def masked_inputs(self, window: Window[Tensor], mask: Tensor | None) -> TrunkInputs:
        """Convert a raw window as `inputs` does, without a look at what its mask holds.

        Args:
            window: raw.
            mask: the window's, or None where no step is padding.
        """
        dtype = self.head.weight.dtype
        actions = self.spec.head.inside(self.to_model_actions(window.actions))
        return TrunkInputs(
            returns_to_go=_blank((window.returns_to_go / self.spec.return_scale).to(dtype), mask),
            observations=_blank(self.to_model_observations(window.observations), mask),
            actions=_blank(actions, mask),
            timesteps=_blank(window.timesteps, mask),
            mask=mask,
        )

    def to_model_observations(self, observations: Tensor) -> Tensor:
        """Normalize raw observations `(..., *obs)`; images stay bytes."""
        if self._raw:
            return observations
        normalized = (observations - self.observation_mean) / self.observation_std
        return normalized.to(self.head.weight.dtype)

    def features(self, observations: Tensor) -> Tensor:
        """Return the encoder's features `(..., F)` of observations in model units `(..., *obs)`; vectors stay."""
        encoder = next(module for module in self.trunk.modules() if isinstance(module, Encoder))
        features: Tensor = encoder(observations)
        return features

    def to_model_actions(self, actions: Tensor) -> Tensor:
        """Convert the environment's actions `(..., A)` or `(...)` to model units; see `Head.to_model_units`."""
        return self.spec.head.to_model_units(actions, self.action_middle, self.action_half)

    def in_env_units(self, actions: Tensor) -> Tensor:
        """Convert actions in model units, `(B, A)` or `(B,)`, to the environment's; rounding may step over a bound."""
        return self.spec.head.in_env_units(actions, self.action_middle, self.action_half)

    def to_env_actions(self, actions: Tensor) -> np.ndarray[Any, Any]:
        """Convert actions in model units, `(B, A)` or `(B,)`, to those of the environment."""
        return self.spec.head.to_array(self.in_env_units(actions))


@contextmanager
def _finding_memory(model: ModelConfig) -> Iterator[None]:
    """Turn what torch says of a network that is too large into one line."""
    try:
        yield
    except (RuntimeError, TypeError) as error:  # TypeError where a size is no 64-bit number
        if not any(word in str(error).lower() for word in ("memory", "overflow")):
            raise
        raise UserError(
            f"there is no memory for a network of embed_dim {model.embed_dim}, num_layers {model.num_layers}, "
            f"context_length {model.context_length}; make it smaller"
        ) from error


def _blank(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return `(B, K, ...)` with zeros at padding, whatever it held; NaN times 0 would stay NaN."""
    if mask is None:
        return values
    return values.masked_fill(~mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim())), 0)


def check_architecture(expected: Mapping[str, Any], found: Mapping[str, Any], *, source: str) -> None:
    """Check that two state dicts have the same names and shapes; see `check_shapes`."""
    own, other = (
        {name: tuple(np.shape(value)) for name, value in each.items()} for each in (expected, found)
    )
    check_shapes(own, other, source=source)


def check_shapes(
    own: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]], *, source: str
) -> None:
    """Check that two sets of weights are of the same names and shapes.

    Args:
        own: the network's.
        other: of what is about to be loaded.
        source: where that comes from, for the message.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape.
    """
    if own == other:
        return
    name = next(n for n in sorted({*own, *other}) if own.get(n) != other.get(n))
    raise UserError(
        f"{source} holds another architecture: {name} is {other.get(name, 'absent')} there and "
        f"{own.get(name, 'absent')} in the model; use the model_config that it was trained with"
    )


def check_finite(weights: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse weights that would act without a word, and always wrongly.

    Raises:
        UserError: one is NaN or infinite.
    """
    for name, values in weights.items():
        if not bool(torch.isfinite(values).all()):
            raise UserError(
                f"{source} has NaN or infinite numbers in {name}: its training diverged, or the file is damaged; "
                "take an earlier checkpoint"
            )
