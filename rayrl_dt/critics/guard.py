"""A critic whose values leave what rewards can add up to has diverged."""

from __future__ import annotations

import torch
from torch import Tensor

from rayrl_dt.errors import TrainingDiverged

__all__ = ["check_values", "explosion", "possible"]

# No return is larger than max |r| / (1 - gamma); values this many times beyond it are not going to come back.
_EXPLODED = 10.0
# A discount of 1 would bound nothing.
_LEAST_LOSS = 1e-6
# Values below it may be those of new weights, however small or rare the rewards are.
_FLOOR = 10.0


def possible(mean: Tensor, *, largest_reward: Tensor, gamma: float) -> Tensor:
    """Return whether rewards can add up to a critic's values, `()` bool; nothing is read from a device.

    Args:
        mean: `()` of the values.
        largest_reward: `()`, size of the largest reward of all data, in the critic's units, and not of one batch
            alone: where rewards are rare, most batches have none.
        gamma: discount.
    """
    bound = (_EXPLODED / max(1 - gamma, _LEAST_LOSS) * largest_reward).clamp(min=_FLOOR)
    return mean.abs() <= bound


def explosion(mean: float, *, largest_reward: float, step: int, remedy: str) -> str:
    """Say that values have exploded.

    Args:
        mean: of the values.
        largest_reward: as for `possible`.
        step: number of the gradient step.
        remedy: how the message ends.
    """
    return (
        f"the critic's values exploded: their mean is {mean:.3g} at gradient step {step}, and rewards up to "
        f"{largest_reward:.3g} cannot add up to a tenth of that; {remedy}"
    )


def check_values(mean: float, *, largest_reward: float, gamma: float, step: int, remedy: str) -> None:
    """Look at a critic's values after a gradient step; the arguments are those of `possible` and `explosion`.

    Raises:
        TrainingDiverged: the values have exploded.
    """
    numbers = torch.tensor([mean, largest_reward], dtype=torch.float64)
    if not possible(numbers[0], largest_reward=numbers[1], gamma=gamma):
        raise TrainingDiverged(explosion(mean, largest_reward=largest_reward, step=step, remedy=remedy))
