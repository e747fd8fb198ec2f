"""What a request may hold: JSON of a few keys, whose values are checked one by one. Nothing of it is executed."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

from rayrl_dt.envs.observations import as_bytes
from rayrl_dt.errors import UserError, is_finite, one_line, suggest
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.serving.policy import LARGEST
from rayrl_dt.types import as_array

__all__ = ["Refused", "observation_of", "optional_number", "read_body", "seed_of", "step_of"]

Array = np.ndarray[Any, Any]


class Refused(UserError):
    """A request that is answered with a reason instead.

    Args:
        status: of HTTP, from 400 to 499.
        reason: one line: the value, what is allowed, the remedy.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def read_body(body: bytes, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON object of a request; an empty body is an empty object.

    Args:
        body: as it came.
        allowed: its keys.

    Raises:
        Refused: it is no JSON object, or has other keys.
    """
    if not body.strip():
        return {}
    try:
        values = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON ({one_line(error)}); send a JSON object") from error
    if not isinstance(values, dict):
        raise Refused(400, f"the body is a JSON {type(values).__name__}; send an object, such as {{}}")
    for key in values:
        if key not in allowed:
            raise Refused(400, f"there is no key {key[:80]!r}.{suggest(key[:80], allowed)}")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def optional_number(values: dict[str, Any], key: str) -> float | None:
    """Return a number of a body, None where it is left out or null.

    Raises:
        Refused: it is no finite number, or beyond float32.
    """
    value = values.get(key)
    if value is None:
        return None
    try:
        if is_finite(value) and abs(value) <= LARGEST:
            return float(value)
    except OverflowError:  # whole numbers of JSON have no end
        pass
    raise Refused(
        400, f"{key} is {_shown(value)}; it must be a finite number of at most {LARGEST:.1e} in size"
    )


def seed_of(values: dict[str, Any]) -> int:
    """Return the seed of a body, 0 where it is left out.

    Raises:
        Refused: it is no whole number from 0 to 2^63 - 1.
    """
    return _whole("seed", values.get("seed", 0))


def step_of(values: dict[str, Any]) -> int | None:
    """Return which step of its session a body is, from 0; None where it is left out or null.

    Raises:
        Refused: it is no whole number from 0 to 2^63 - 1.
    """
    step = values.get("step")
    return None if step is None else _whole("step", step)


def _whole(key: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise Refused(400, f"{key} is {_shown(value)}; it must be a whole number from 0 to 2^63 - 1")


def observation_of(spec: PolicySpec, values: dict[str, Any]) -> Array:
    """Return the observation of a body as the policy reads it.

    Raises:
        Refused: it is left out, does not fit the policy, or is not finite.
    """
    if "observation" not in values:
        raise Refused(400, "the body has no observation; send what the environment returned, as lists")
    try:
        given = _with_bytes(spec.recorded_space or spec.observation_space, values["observation"])
        with np.errstate(over="ignore"):
            read = spec.flattening(given)
    except (UserError, OverflowError) as error:
        raise Refused(400, f"observation: {one_line(error)}") from error
    if not np.isfinite(read).all():
        raise Refused(400, "observation: a number is infinite, or beyond float32; send finite numbers")
    return read


def _with_bytes(space: gym.Space[Any], value: Any) -> Any:
    """Return an observation whose parts that are bytes are arrays of bytes; what else is wrong shows later."""
    if isinstance(space, gym.spaces.Dict) and isinstance(value, dict):
        return {
            key: _with_bytes(space[key], part) if key in space.spaces else part for key, part in value.items()
        }
    if isinstance(space, gym.spaces.Tuple) and isinstance(value, list) and len(value) == len(space.spaces):
        return tuple(map(_with_bytes, space.spaces, value))
    if isinstance(space, gym.spaces.Box) and space.dtype == np.uint8:
        return as_bytes(as_array(value))
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
