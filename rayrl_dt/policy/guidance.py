"""Guidance: how strongly a policy follows the return that it is asked for, as a way to act that needs no critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rayrl_dt.settings import Settings, as_number, real, setting

__all__ = ["Guidance"]


@dataclass(frozen=True)
class Guidance(Settings):
    """How strongly the return is followed; see `rayrl_dt.policy.acting.guided`.

    Attributes:
        weight: w; 1 leaves the policy as it is, 0 acts as if nothing were asked for, more goes beyond.

    Raises:
        UserError: the value is out of range.
    """

    section: ClassVar[str] = "guidance"

    weight: float = setting(1.0, real(least=0))

    @classmethod
    def from_value(cls, value: Any) -> Guidance:
        """Build it from a value of a config file: a number, or a mapping.

        Raises:
            UserError: it is neither, or out of range.
        """
        # What is no number is refused by the field's own check.
        return cls.read(value) if isinstance(value, dict) else cls(weight=as_number(value))  # type: ignore[arg-type]

    @property
    def idle(self) -> bool:
        """Whether it leaves every action as it is."""
        return self.weight == 1
