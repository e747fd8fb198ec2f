"""Acting by the best of several sampled actions, as a critic sees it (Hu et al. 2024, Q-value regularized Transformer).

Beside the policy's action, n more are drawn and the one with the highest Q is executed. A Gaussian policy draws its
own; a deterministic one has none to draw, and the candidates are its action plus clipped normal noise (ours, as an
option). Unlike Action Gradient it needs no gradient of the critic, and stays where the policy has support.

Differs from QT, which chooses among the actions for several target returns too: here the target is the user's. Q is
the lower one of twin critics, as in training. Q never falls, the return may: compare with n = 0 of the same checkpoint.

Shape legend: M candidates, N rows (slots), S observation dimensions, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import check_continuous
from rayrl_dt.policy.candidates import CandidateCritic, best_of
from rayrl_dt.policy.refiner import Asked, Draw
from rayrl_dt.seeding import torch_generator
from rayrl_dt.settings import Settings, count, real, setting
from rayrl_dt.types import ACTION_LIMIT

__all__ = ["SampledActions", "SamplingRefiner"]


@dataclass(frozen=True)
class SampledActions(Settings):
    """How actions are sampled.

    Attributes:
        n: actions drawn beside the policy's; 0 leaves the policy as it is.
        noise: standard deviation around a deterministic policy's action, in units of [-1, 1]; a Gaussian policy draws
            from itself.
        seed: of the draws.

    Raises:
        UserError: a value is out of range.
    """

    section: ClassVar[str] = "sampled_actions"

    n: int = setting(50, count())
    noise: float = setting(0.1, real(least=0))
    seed: int = setting(0, count())

    @classmethod
    def parse(cls, words: str) -> SampledActions:
        """Read "n=50,noise=0.1", or "50" for n alone; what is not named keeps its default.

        Raises:
            UserError: it cannot be read, or a value is out of range.
        """
        if words.strip().isdecimal():
            return cls(n=int(words))
        return super().parse(words)

    @classmethod
    def from_value(cls, value: Any) -> SampledActions:
        """Build it from a value of a config file: a mapping, or a number for n alone; numbers may be written as text.

        Raises:
            UserError: it is neither, a key is unknown, or a value cannot be read or is out of range.
        """
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(n=value)
        if not isinstance(value, Mapping):
            raise UserError(
                f"the sampled actions are {value!r}; write how many, such as 50, or a mapping, such as "
                "{n: 50, noise: 0.1}"
            )
        return cls.read(value)

    @property
    def idle(self) -> bool:
        """Whether it leaves every action as it is."""
        return self.n == 0


class SamplingRefiner:
    """Takes the best of sampled actions for all slots at once; the draws go on from call to call.

    Args:
        settings: how.
        critic: in the units of the policy.
        spec: of the policy; normalizes observations.

    Raises:
        UserError: the policy's actions are discrete.
    """

    def __init__(self, settings: SampledActions, critic: IQLCritic, spec: PolicySpec) -> None:
        check_continuous(spec)
        self.settings = settings
        self._judge = CandidateCritic(critic.q, spec)
        self._generator = torch_generator(settings.seed, "sampled-actions")

    def __call__(
        self,
        observations: np.ndarray[Any, Any],
        actions: Tensor,
        draw: Draw | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Return the candidate with the highest Q for each row; see `Refiner`."""
        settings = self.settings
        if settings.idle:
            return actions
        with torch.no_grad():
            if draw is None:
                noise = torch.randn((settings.n, *actions.shape), generator=self._generator)
                drawn = actions + settings.noise * noise.to(actions.device)  # (N, A) -> (M, N, A)
                drawn = drawn.clamp(-ACTION_LIMIT, ACTION_LIMIT)
            else:
                drawn = draw(settings.n, self._generator)
            candidates, values = self._judge(observations, actions, drawn)  # (1 + M, N, A) and (1 + M, N)
            return best_of(candidates, values).to(actions.device)
