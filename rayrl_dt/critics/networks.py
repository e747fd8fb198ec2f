"""Values of states and actions: for online finetuning, and for acting with a critic.

Shape legend: N rows, S observation dimensions, A action dimensions, H hidden units, F features of an observation, n
discrete actions, M networks that are asked.
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
from rayrl_dt.models.encoders import encoder_of
from rayrl_dt.models.spec import PolicySpec

__all__ = ["DiscreteCritic", "IQLCritic", "TwinCritic", "units_of"]


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
        inputs, outputs = self._sizes(spec)
        widths = (inputs, hidden, hidden)
        self.q1 = _mlp(widths, layer_norm, outputs)
        self.q2 = _mlp(widths, layer_norm, outputs)
        for number in range(3, ensemble + 1):
            self.add_module(f"q{number}", _mlp(widths, layer_norm, outputs))

    def _sizes(self, spec: PolicySpec) -> tuple[int, int]:
        """Return how many numbers a network takes and gives."""
        if not spec.head.continuous:
            raise UserError(
                f"a critic takes continuous actions, and those of {spec.dataset} are {spec.action_space}; "
                "finetune without a critic (online.rl_gradient: none), or choose data with continuous actions"
            )
        shape = spec.observation_space.shape or ()
        if len(shape) != 1 or encoder_of(spec.seen_space, spec.model.encoder).raw:
            raise UserError(
                f"a critic takes observations that are vectors, not {spec.observation_space}; wrap the environment "
                "with gymnasium.wrappers.FlattenObservation"
            )
        return shape[0] + spec.action_size, 1

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
        rows, networks = inputs.flatten(0, -2), self._asked(members)  # (N, S + A)
        if self.layer_norm:
            values = [_outputs(network, rows, dtype)[:, 0] for network in networks]
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

    def _asked(self, members: Sequence[int] | None) -> list[nn.Sequential]:
        networks = self.networks
        return networks if members is None else [networks[member] for member in members]

    def _held(self, network: nn.Sequential, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the values `(N,)` of a network whose weights need no gradient."""
        if self.layer_norm:
            return _outputs(network, rows, dtype)[:, 0]
        return values_of(layers_of(network), rows, dtype)


class DiscreteCritic(TwinCritic):
    """The same of discrete actions: a network has a value for each of them (DQN), and all are asked at once.

    What is valued is a law over the actions, `(..., n)`: the value that an action drawn from it has on average. An
    action is its own index, `(...)`. Observations are the features `(..., F)` of the policy's encoder, which takes no
    gradient from here, so images are read as well as vectors.

    Args:
        spec: of the policy that it judges.
        hidden: as for `TwinCritic`.
        layer_norm: likewise.
        ensemble: likewise.
    """

    def _sizes(self, spec: PolicySpec) -> tuple[int, int]:
        encoder = encoder_of(spec.seen_space, spec.model.encoder)(spec.seen_space)
        return encoder.features, spec.action_size

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        members: Sequence[int] | None = None,
    ) -> Tensor:
        """Value laws or actions; see `TwinCritic`. The first layers multiply in the type of the features.

        Args:
            observations: `(..., F)`.
            actions: `(..., n)` probabilities, or `(...)` int64 indices.
            dtype: of the products of the second layers.
            members: which to ask; None for all.

        Returns:
            `(M, ...)`.
        """
        every = self._of_each_action(observations, dtype, self._asked(members))  # (M, ..., n)
        if actions.is_floating_point():
            return (every * actions).sum(dim=-1)
        return every.gather(-1, actions.expand(every.shape[:-1])[..., None])[..., 0]

    def first(self, observations: Tensor, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return Q1 alone, with gradients for laws; see `TwinCritic`."""
        with torch.no_grad():
            (values,) = self._of_each_action(observations, dtype, self.networks[:1])  # (..., n)
        valued: Tensor = (values * actions).sum(dim=-1)
        return valued

    def held(self, observations: Tensor, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values `(E, ...)` of laws `(..., n)`, with gradients for these alone."""
        with torch.no_grad():
            values = self._of_each_action(observations, dtype, self.networks)  # (E, ..., n)
        return (values * actions).sum(dim=-1)

    def _of_each_action(
        self, observations: Tensor, dtype: torch.dtype, networks: list[nn.Sequential]
    ) -> Tensor:
        rows = observations.flatten(0, -2)  # (N, F)
        values = torch.stack([_outputs(network, rows, dtype) for network in networks])  # (M, N, n)
        return values.view(len(networks), *observations.shape[:-1], -1)  # (M, ..., n)


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
        self.value = _mlp(((spec.observation_space.shape or ())[0], hidden, hidden), False, 1)
        self.target = copy.deepcopy(self.q).requires_grad_(False)


def units_of(spec: PolicySpec) -> str:
    """Return a fingerprint of what a critic of this policy sees: equal exactly where the units are."""
    low, high = (np.array(bound, np.float64) for bound in (spec.action_low, spec.action_high))
    parts = (spec.normalizer.mean, spec.normalizer.std, low, high)
    return hashlib.sha256(b"|".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]


def _mlp(widths: tuple[int, ...], layer_norm: bool, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers.append(nn.Linear(width, following))
        if layer_norm:
            layers.append(nn.LayerNorm(following, elementwise_affine=False))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def _outputs(network: nn.Sequential, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a network's outputs `(N, ...)`, by autograd: first product in the inputs' type, second in `dtype`."""
    middle = len(network) // 2
    first, second = network[0], network[middle]
    hidden = network[1:middle](_product(first, inputs, inputs.dtype))  # (N, S + A) -> (N, H)
    outputs: Tensor = network[middle + 1 :](_product(second, hidden, dtype))
    return outputs


def _product(layer: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return functional.linear(inputs.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)).float()
