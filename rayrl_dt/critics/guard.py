"""A critic whose values leave what rewards can add up to has diverged."""

from __future__ import annotations

from rayrl_dt.errors import TrainingDiverged

__all__ = ["check_values"]

# No return is larger than max |r| / (1 - gamma); values this many times beyond it are not going to come back.
_EXPLODED = 10.0
# A discount of 1 would bound nothing.
_LEAST_LOSS = 1e-6
# Values below it may be those of new weights, however small or rare the rewards are.
_FLOOR = 10.0


def check_values(mean: float, *, largest_reward: float, gamma: float, step: int, remedy: str) -> None:
    """Look at a critic's values after a gradient step.

    Args:
        mean: of the values.
        largest_reward: size of the largest reward of all data, in the critic's units, and not of one batch alone:
            where rewards are rare, most batches have none.
        gamma: discount.
        step: number of the gradient step.
        remedy: how the message ends.

    Raises:
        TrainingDiverged: the values have exploded.
    """
    bound = max(_EXPLODED * largest_reward / max(1 - gamma, _LEAST_LOSS), _FLOOR)
    if not abs(mean) <= bound:
        raise TrainingDiverged(
            f"the critic's values exploded: their mean is {mean:.3g} at gradient step {step}, and rewards up to "
            f"{largest_reward:.3g} cannot add up to a tenth of that; {remedy}"
        )
