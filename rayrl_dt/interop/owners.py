"""Whose files a folder holds: RLlib's and Ray Tune's checkpoints are pickles, which run code of whoever wrote them."""

from __future__ import annotations

import os
from pathlib import Path

from rayrl_dt.errors import UserError

__all__ = ["check_owner"]


def check_owner(folder: Path, *, me: int | None = None) -> None:
    """Refuse to go on in a folder that holds another user's files.

    Args:
        folder: of a run or a sweep; what is not there belongs to nobody.
        me: the user; None for that of this process.

    Raises:
        UserError: a file or a folder is another user's.
    """
    if not hasattr(os, "getuid"):
        return
    me = os.getuid() if me is None else me
    for path in (folder, *folder.rglob("*")):
        if path.exists() and path.stat().st_uid != me:
            raise UserError(
                f"{path} belongs to another user (id {path.stat().st_uid}), and the checkpoints that --resume reads "
                "are pickles, which run code of whoever wrote them; copy its policy with rayrl-dt export, which runs "
                "none, or go on with --trust-checkpoint"
            )
