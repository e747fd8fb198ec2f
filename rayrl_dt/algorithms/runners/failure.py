"""What went wrong on an env runner, as text: an exception may not survive the way from its process to the driver's."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from rayrl_dt.errors import EnvironmentFailed, UserError

__all__ = ["RunnerFailure", "RunnerTraceback"]

_AND_GO_ON = "then continue from the last checkpoint with --resume"


class RunnerTraceback(Exception):
    """The cause of an error that was raised in an env runner's process: the traceback there."""

    def __str__(self) -> str:
        return f"\n\nIn the env runner:\n{self.args[0]}"


@dataclass(frozen=True)
class RunnerFailure:
    """An exception of an environment or a policy.

    Attributes:
        message: what to tell the user, in one line.
        traceback: as Python prints it.
    """

    message: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> RunnerFailure:
        """Describe an exception where it was caught; a `UserError` keeps its message."""
        message = " ".join(str(error).split())
        if isinstance(error, EnvironmentFailed):
            message += f", {_AND_GO_ON}"
        elif not isinstance(error, UserError):
            message = (
                f"an env runner raised {type(error).__name__}: {message}; mend the environment, {_AND_GO_ON}"
            )
        return cls(message, "".join(traceback.format_exception(error)))

    def error(self) -> UserError:
        """Return what to raise from it; the traceback is its cause."""
        error = UserError(self.message)
        error.__cause__ = RunnerTraceback(self.traceback)
        return error
