"""Values of states and actions: for online finetuning, and for acting with a critic.

Shape legend: N rows, S observation dimensions, A action dimensions, H hidden units.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrl_dt.critics.passes import Layers, layers_of, values_of
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["IQLCritic", "TwinCritic", "units_of"]


_SECOND = 3
"""Where the second linear layer stands in a network with layer norm."""


class TwinCritic(nn.Module):
    """Independent value functions Q1, Q2, ... of single steps (TD3+ODT, equation 3: "reflexive" critics).

    Two as in TD3, or more as in REDQ and RLPD (Ball et al. 2023, section 4), whose targets ask a random few.

    Each is an MLP [observation; action] -> hidden -> hidden -> 1 with ReLU and PyTorch's own initialization. They are
    plain networks: stacking their weights for batched products takes longer on a CPU (27.5 to 31 ms instead of 26 ms
    for forward and backward of 1,280 rows, 2 x 256).

    The critic does not know about padding. What padding holds must be finite, for 0 times NaN is NaN in the gradient
    of the weights; `SequenceModel.inputs` leaves zeros there.

    Args:
        spec: of the policy that it judges.
        hidden: width of both hidden layers.
        layer_norm: normalize the hidden layers before the ReLU, without learned scale and shift. The authors do so
            everywhere but on MuJoCo.
        ensemble: E, how many; `q1` and `q2` are there in any case.

    Attributes:
        layer_norm: as given.
        ensemble: as given.

    Raises:
        UserError: the actions are discrete, or the observations are not vectors.
    """

    def __init__(
        self, spec: PolicySpec, *, hidden: int = 256, layer_norm: bool = False, ensemble: int = 2
    ) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.ensemble = ensemble
        if not spec.head.continuous:
            raise UserError(
                f"a critic takes continuous actions, and those of {spec.dataset} are {spec.action_space}; "
                "finetune without a critic (online.rl_gradient: none), or choose data with continuous actions"
            )
        shape = spec.observation_space.shape or ()
        if len(shape) != 1:
            raise UserError(
                f"a critic takes observations that are vectors, not of shape {shape}; wrap the environment with "
                "gymnasium.wrappers.FlattenObservation"
            )
        widths = (shape[0] + spec.action_size, hidden, hidden)
        self.q1 = _mlp(widths, layer_norm)
        self.q2 = _mlp(widths, layer_norm)
        for number in range(3, ensemble + 1):
            self.add_module(f"q{number}", _mlp(widths, layer_norm))

    @property
    def networks(self) -> list[nn.Sequential]:
        """Q1, Q2, ..., in order."""
        names = (f"q{number}" for number in range(1, self.ensemble + 1))
        return [cast(nn.Sequential, self.get_submodule(name)) for name in names]

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        members: Sequence[int] | None = None,
    ) -> Tensor:
        """Value actions.

        Args:
            observations: `(..., S)` normalized.
            actions: `(..., A)` in [-1, 1].
            dtype: of the products of the second layers, nearly all of the work; all else is float32, since a value of
                300 in bf16 would be off by 1.
            members: which of them to ask, from 0; None for all.

        Returns:
            `(M, ...)` of the M that are asked; Q1 and Q2 where there are no more.
        """
        inputs = torch.cat([observations, actions], dim=-1)  # (..., S + A)
        rows, networks = inputs.flatten(0, -2), self.networks  # (N, S + A)
        if members is not None:
            networks = [networks[member] for member in members]
        if self.layer_norm:
            values = [_normed_values(network, rows, dtype) for network in networks]
        else:
            values = [values_of(Layers(*network.parameters()), rows, dtype) for network in networks]
        return torch.stack(values).view(len(networks), *inputs.shape[:-1])  # (M, N) -> (M, ...)

    def first(self, observations: Tensor, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return Q1 alone, `(...)`, at half the cost: the actor's loss asks for no more (TD3).

        Gradients are for the actions; the weights are taken as they are.
        """
        inputs = torch.cat([observations, actions], dim=-1)  # (..., S + A)
        return self._held(self.q1, inputs.flatten(0, -2), dtype).view(inputs.shape[:-1])  # (N,) -> (...)

    def held(self, observations: Tensor, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values of all, `(E, ...)`, as `forward` does, with gradients for the actions alone."""
        inputs = torch.cat([observations, actions], dim=-1)  # (..., S + A)
        rows = inputs.flatten(0, -2)  # (N, S + A)
        values = [self._held(network, rows, dtype) for network in self.networks]
        return torch.stack(values).view(len(values), *inputs.shape[:-1])  # (E, N) -> (E, ...)

    def _held(self, network: nn.Sequential, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the values `(N,)` of a network whose weights need no gradient."""
        if self.layer_norm:
            return _normed_values(network, rows, dtype)
        return values_of(layers_of(network), rows, dtype)


class IQLCritic(nn.Module):
    """The value functions of implicit Q-learning (Kostrikov et al. 2022): V, twin Q, and Q's slow copy.

    They are learned from logged data alone, and from no policy's actions (`rayrl_dt.critics.training`).

    Differs from RLlib's IQL, whose targets and expectile have faults of their own: nothing is shared with it.

    Args:
        spec: of the policy whose units the critic shares: normalized observations, actions in [-1, 1].
        hidden: width of both hidden layers of each network.

    Attributes:
        hidden: as given.
        value: V, `(..., S)` normalized to `(..., 1)`.
        q: twin Q.
        target: slow copy of `q`; only training reads it, and a bundle does not keep it.

    Raises:
        UserError: the actions are discrete, or the observations are not vectors.
    """

    def __init__(self, spec: PolicySpec, *, hidden: int = 256) -> None:
        super().__init__()
        self.hidden = hidden
        self.q = TwinCritic(spec, hidden=hidden)
        self.value = _mlp(((spec.observation_space.shape or ())[0], hidden, hidden), layer_norm=False)
        self.target = copy.deepcopy(self.q).requires_grad_(False)


def units_of(spec: PolicySpec) -> str:
    """Return a fingerprint of what a critic of this policy sees: equal exactly where the units are."""
    low, high = (np.array(bound, np.float64) for bound in (spec.action_low, spec.action_high))
    parts = (spec.normalizer.mean, spec.normalizer.std, low, high)
    return hashlib.sha256(b"|".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]


def _mlp(widths: tuple[int, ...], layer_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers.append(nn.Linear(width, following))
        if layer_norm:
            layers.append(nn.LayerNorm(following, elementwise_affine=False))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


def _normed_values(network: nn.Sequential, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Values `(N,)` of a network with layer norm, by autograd; `dtype` is that of the second layer's product."""
    second = network[_SECOND]
    assert isinstance(second, nn.Linear)
    hidden = network[:_SECOND](inputs).to(dtype)  # (N, S + A) -> (N, H)
    hidden = functional.linear(hidden, second.weight.to(dtype), second.bias.to(dtype)).float()
    values: Tensor = network[_SECOND + 1 :](hidden)  # (N, 1)
    return values[:, 0]
