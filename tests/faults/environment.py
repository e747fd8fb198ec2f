"""An environment that is what people's are now and then: it hangs, or takes its time."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import gymnasium as gym

HANG, SLOW = "hang", "slow"
"""Files that ask for it: the first one to find `hang` takes it away; while `slow` is there, all wait at each step."""
_SLOW_S = 0.005


class Unreliable(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum, which looks for a file before each step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.hang, self.slow = folder / HANG, folder / SLOW

    def step(self, action: Any) -> Any:
        if self.hang.exists():
            with contextlib.suppress(FileNotFoundError):  # another one was quicker
                self.hang.unlink()
                time.sleep(10**6)
        if self.slow.exists():
            time.sleep(_SLOW_S)
        return super().step(action)


def unreliable(folder: str) -> Unreliable:
    """Makes one."""
    return Unreliable(Path(folder))
