"""How much a server takes on."""

from __future__ import annotations

from dataclasses import dataclass

from rayrl_dt.settings import Settings, count, real, setting

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits(Settings):
    """Limits of a server of sessions.

    Attributes:
        sessions: episodes that are open at once; memory is set aside for all of them.
        idle_seconds: a session that nobody has used for so long ends.
        batch: steps that one forward answers.
        wait_ms: how long the first step of a batch waits for others; 0 takes those that are there.

    Raises:
        UserError: a value is out of range.
    """

    section = "serve"

    sessions: int = setting(1000, count(1))
    idle_seconds: float = setting(600.0, real(above=0))
    batch: int = setting(256, count(1))
    wait_ms: float = setting(2.0, real(least=0))
