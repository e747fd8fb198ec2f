"""Action Gradient: climbing a critic from the policy's action, while acting (Lin et al. 2025, section 4).

From a^0 = policy(context) take n steps a^{i+1} = a^i + eta d_i along the critic's gradient (equation 1), and execute
the a^i with the highest Q (equation 2). The rules differ in d_i; g_i is the gradient of Q with respect to the action:

    plain       d = g                                       equation 1
    momentum    v <- v + zeta1 g, d = v                     equation 6
    rmsprop     r <- zeta2 r + (1 - zeta2) g^2,
                d = g / (sqrt(r) + epsilon)                 equation 7
    adam        both moments, each an average with
                its own zeta, d = m / (sqrt(r) + epsilon)   equation 8

As printed, momentum never forgets, and Adam divides its moments by 1 - zeta at every step. With `form="standard"`,
momentum is v <- zeta1 v + g and Adam divides by 1 - zeta^i.

Where the paper is silent: Q is the lower one of twin critics, for the gradient and for the choice; each iterate is
projected onto the action bounds; the first of equally good iterates is taken. A critic's optimum is not the
environment's: Q(s, a) never falls, the return may. Always compare with n = 0 of the same checkpoint.

Shape legend: N rows (slots), S observation dimensions, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.passes import Layers, forward, input_gradients, layers_of, memory_for
from rayrl_dt.errors import UserError, number
from rayrl_dt.models.encoders import encoder_of
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.candidates import RawObservations
from rayrl_dt.policy.refiner import Asked, Draw
from rayrl_dt.settings import Settings, choice, count, real, setting
from rayrl_dt.types import ACTION_LIMIT

__all__ = ["RULES", "ActionGradient", "ActionRefiner", "check_continuous", "climb"]

RULES = ("plain", "momentum", "rmsprop", "adam")


@dataclass(frozen=True)
class ActionGradient(Settings):
    """How actions are refined.

    Attributes:
        eta: step size, in units of [-1, 1] per unit of Q, which are rewards divided by the critic's own scale; for
            rmsprop and adam nearly the step itself.
        n: steps; 0 leaves the policy as it is.
        rule: "plain", "momentum", "rmsprop" or "adam".
        zeta1: of the first moment (momentum, adam).
        zeta2: of the second moment (rmsprop, adam).
        epsilon: added to the root of the second moment.
        form: "printed" in the paper, or "standard"; plain and rmsprop are the same in both.

    Raises:
        UserError: a value is out of range, or a name unknown.
    """

    section: ClassVar[str] = "action_gradient"

    eta: float = setting(0.03, real(least=0))
    n: int = setting(10, count())
    rule: str = setting("plain", choice(*RULES))
    zeta1: float = setting(0.9, real(least=0, most=1))
    zeta2: float = setting(0.999, real(least=0, below=1))
    epsilon: float = setting(1e-8, real(least=0))
    form: str = setting("printed", choice("printed", "standard"))

    def __post_init__(self) -> None:
        super().__post_init__()
        # Momentum as printed with zeta1 = 1 is the plain rule's running sum.
        if self.rule != "momentum":
            number("action_gradient.zeta1", self.zeta1, below=1)

    @property
    def idle(self) -> bool:
        """Whether it leaves every action as it is."""
        return self.n == 0 or self.eta == 0


class ActionRefiner:
    """Refines the actions of all slots at once with a critic.

    It reads the critic's weights without autograd: neither they nor any `.grad` change, and callers may run under
    `torch.no_grad` or `torch.inference_mode`.

    Args:
        settings: how.
        critic: in the units of the policy.
        spec: of the policy; normalizes observations.

    Raises:
        UserError: the policy's actions are discrete, or its observations differ from the critic's.
    """

    def __init__(self, settings: ActionGradient, critic: IQLCritic, spec: PolicySpec) -> None:
        check_continuous(spec)
        space = spec.observation_space
        expected = critic.q.q1[0].in_features
        found = encoder_of(space)(space).features + spec.action_size
        if expected != found:
            raise UserError(
                f"the critic takes {expected} inputs, the policy has {found} observations and actions; "
                "train a critic for this policy: rayrl-dt critic RUN"
            )
        self.settings = settings
        self._twins = layers_of(critic.q.q1), layers_of(critic.q.q2)
        self._normalize = RawObservations(spec, self._twins[0].last_bias.device)

    def __call__(
        self,
        observations: np.ndarray[Any, Any],
        actions: Tensor,
        draw: Draw | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Return better actions; see `Refiner`.

        Args:
            observations: `(N, S)` raw.
            actions: `(N, A)` of the policy, in [-1, 1].
            draw: not asked.
            asked: not read.

        Returns:
            `(N, A)` float32; the same tensor where nothing is to be done (n = 0 or eta = 0).
        """
        del draw, asked
        if self.settings.idle:
            return actions
        with torch.no_grad():
            normalized = self._normalize(observations)
            start = actions.to(normalized.device, torch.float32)
            return climb(self._twins, normalized, start, self.settings).to(actions.device)


def check_continuous(spec: PolicySpec) -> None:
    """Raise UserError if a policy's actions have no gradient."""
    if not spec.head.continuous:
        raise UserError(
            f"acting with a critic needs continuous actions, and those of {spec.dataset} are {spec.action_space}; "
            "leave it out, or choose a policy with continuous actions"
        )


def climb(
    twins: tuple[Layers, Layers], observations: Tensor, actions: Tensor, settings: ActionGradient
) -> Tensor:
    """Return the best of the iterates a^0, ..., a^n for each row, `(N, A)` (equations 1 and 2).

    Args:
        twins: weights of both critics.
        observations: `(N, S)` normalized.
        actions: `(N, A)` in [-1, 1], a^0; it is a candidate as it is, the others are projected.
        settings: how.
    """
    direction, moments = _DIRECTIONS[settings.rule], _Moments(actions)
    inputs = torch.cat([observations, actions], dim=-1)  # (N, S + A)
    columns = observations.shape[1]
    # A view: stepping writes the next iterate where the networks read it.
    iterate = inputs[:, columns:]
    memories = [memory_for(layers, len(inputs)) for layers in twins]
    best, highest = actions, torch.empty(0)
    for step in range(settings.n + 1):
        one, other = (forward(layers, inputs, memory) for layers, memory in zip(twins, memories, strict=True))
        values = torch.minimum(one.values, other.values)  # (N,)
        if step == 0:
            highest = values
        else:
            # A value that is NaN is no improvement.
            better = values > highest
            best, highest = torch.where(better[:, None], iterate, best), torch.where(better, values, highest)
        if step == settings.n:
            break
        first, second = (
            input_gradients(layers, passed, skip=columns)
            for layers, passed in zip(twins, (one, other), strict=True)
        )
        gradient = torch.where((one.values <= other.values)[:, None], first, second)  # (N, A)
        iterate += settings.eta * direction(settings, moments, gradient, step + 1)
        iterate.clamp_(-ACTION_LIMIT, ACTION_LIMIT)
    return best


class _Moments:
    """Running averages of the gradient and of its square, `(N, A)` each."""

    def __init__(self, like: Tensor) -> None:
        self.first = torch.zeros_like(like)
        self.second = torch.zeros_like(like)


def _plain(settings: ActionGradient, moments: _Moments, gradient: Tensor, step: int) -> Tensor:
    return gradient


def _momentum(settings: ActionGradient, moments: _Moments, gradient: Tensor, step: int) -> Tensor:
    if settings.form == "printed":
        moments.first += settings.zeta1 * gradient
    else:
        moments.first = settings.zeta1 * moments.first + gradient
    return moments.first


def _rmsprop(settings: ActionGradient, moments: _Moments, gradient: Tensor, step: int) -> Tensor:
    moments.second = settings.zeta2 * moments.second + (1 - settings.zeta2) * gradient.square()
    return gradient / (moments.second.sqrt() + settings.epsilon)


def _adam(settings: ActionGradient, moments: _Moments, gradient: Tensor, step: int) -> Tensor:
    power = 1 if settings.form == "printed" else step
    moments.first = settings.zeta1 * moments.first + (1 - settings.zeta1) * gradient
    moments.second = settings.zeta2 * moments.second + (1 - settings.zeta2) * gradient.square()
    mean = moments.first / (1 - settings.zeta1**power)
    return mean / ((moments.second / (1 - settings.zeta2**power)).sqrt() + settings.epsilon)


_DIRECTIONS = dict(zip(RULES, (_plain, _momentum, _rmsprop, _adam), strict=True))
