"""Checkpoints of other versions, whose classes have moved since; RLlib would take such a one for empty."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

from ray.rllib.utils.checkpoints import Checkpointable

from rayrl_dt.errors import UserError

__all__ = ["check_resumable"]


def check_resumable(checkpoint: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint on this machine whose classes are not where they were when it was written.

    Raises:
        UserError: saying so, and what can be done with it.
    """
    file = Path(checkpoint) / Checkpointable.CLASS_AND_CTOR_ARGS_FILE_NAME
    if not file.is_file():
        return
    try:
        with file.open("rb") as stream:
            pickle.load(stream)
    except (AttributeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{checkpoint} was written by another version of rayrl_dt ({reason}) and cannot be resumed: evaluate or "
            "finetune its policy, train again in a new folder, or resume it with the version that wrote it"
        ) from error
