"""What a policy's specification must hold, wherever it came from; `PolicySpec.validate` asks.

Shape legend: A action dimensions; `*obs` observation shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from rayrl_dt.envs.packed import Packed
from rayrl_dt.envs.spaces_json import MOST_NUMBERS
from rayrl_dt.errors import UserError, number, one_of
from rayrl_dt.models.encoders import encoder_of
from rayrl_dt.models.heads import HEADS

if TYPE_CHECKING:
    from rayrl_dt.models.spec import PolicySpec

__all__ = ["ACTION_SELECTIONS", "check_acting", "check_numbers"]

ACTION_SELECTIONS = ("mode", "sample")
_REMEDY = "export the policy again"


def check_acting(spec: PolicySpec) -> None:
    """Check that a policy can act as it is told; see `PolicySpec.validate`."""
    steps, most = spec.acting_context_length, spec.model.context_length
    least = 1 if spec.backbone.every_step else most
    if steps is not None and (not isinstance(steps, int) or not least <= steps <= most):
        raise UserError(
            f"a policy of backbone {spec.model.backbone} and context_length {most} cannot act on a context length "
            f"of {steps!r}; use a whole number from {least} to {most}"
        )
    number("guidance", spec.guidance, least=0)
    if spec.guidance != 1 and spec.model.return_dropout == 0:
        raise UserError(
            f"guidance is {spec.guidance}, and the policy (backbone {spec.model.backbone}) never learned to act on "
            "no return, from which it is to be led away: train it with model_config.return_dropout, as in 0.2, or "
            "leave guidance at 1"
        )
    if spec.action_selection is None:
        return
    chosen = one_of("action_selection", spec.action_selection, ACTION_SELECTIONS)
    if chosen == "sample" and not spec.head.drawn_in_evaluations:
        raise UserError(
            "action_selection is 'sample', and the policy's actions are continuous, which are not drawn in "
            "evaluations; remove it"
        )


def check_numbers(spec: PolicySpec) -> None:
    """Check that a policy's parts fit each other, and its scales are some; see `PolicySpec.validate`."""
    _check_head(spec)
    _check_frames(spec)
    _check_normalizer(spec)
    number("return_scale", spec.return_scale, above=0)
    if spec.reward_scale is not None:
        number("reward_scale", spec.reward_scale, above=0)


def _check_head(spec: PolicySpec) -> None:
    name, space = spec.model.head, spec.action_space
    fitting = [each for each, head in HEADS.items() if head.fits(space)]
    if name not in fitting:
        use = f"a fitting head is {' or '.join(map(repr, fitting))}: {_REMEDY}" if fitting else _REMEDY
        raise UserError(f"model.head {name!r} does not take actions of {_described(space)}; {use}")
    if not HEADS[name].continuous:
        return
    low, high = np.array(spec.action_low, np.float64), np.array(spec.action_high, np.float64)  # (A,) each
    right = low.shape == high.shape == space.shape and np.isfinite([low, high]).all() and (low < high).all()
    if not right:
        raise UserError(
            f"action_low {_shown(low)} and action_high {_shown(high)} are no range of {_described(space)}; {_REMEDY}"
        )


def _check_frames(spec: PolicySpec) -> None:
    frames, space = spec.model.frame_stack, spec.observation_space
    if frames is None:
        return
    shape = space.shape or ()
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8 or len(shape) != 2:
        raise UserError(
            f"model.frame_stack is {frames}, and observations are no single images (H, W) of uint8 but "
            f"{_described(space)}; {_REMEDY}"
        )
    if frames * int(np.prod(shape)) > MOST_NUMBERS:
        raise UserError(
            f"model.frame_stack is {frames}, and so many images of {shape} have more than {MOST_NUMBERS:,} pixels; "
            "use fewer"
        )


def _check_normalizer(spec: PolicySpec) -> None:
    mean, std, seen = spec.normalizer.mean, spec.normalizer.std, spec.seen_space
    raw = encoder_of(seen, spec.model.encoder).raw
    if isinstance(seen, Packed):
        shape: tuple[int, ...] = (seen.numbers,)
    else:
        shape = mean.shape if raw else seen.shape or ()
    if mean.shape not in ((), shape) or std.shape != mean.shape:  # or one for all
        raise UserError(
            f"normalizer has a mean of shape {mean.shape} and a std of shape {std.shape} for observations that need "
            f"{shape}; {_REMEDY}"
        )
    if not np.isfinite(mean).all():
        raise UserError(f"normalizer.mean is {_shown(mean)}; it must be finite: {_REMEDY}")
    if not (np.isfinite(std) & (std > 0)).all():
        raise UserError(f"normalizer.std is {_shown(std)}; it must be finite and above 0: {_REMEDY}")


def _described(space: gym.Space[Any]) -> str:
    return f"{type(space).__name__} {space.dtype} of shape {space.shape}"


def _shown(values: np.ndarray[Any, Any]) -> str:
    """Return the first numbers of an array on one line."""
    text = ", ".join(f"{value:g}" for value in values.flat[:4])
    return f"[{text}{', ...' if values.size > 4 else ''}]"
