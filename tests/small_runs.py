"""Runs of a few seconds."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any


def values(dataset: str, **training: Any) -> dict[str, Any]:
    """Three iterations of four steps, each with an evaluation."""
    settings = {"gradient_steps": 12, "gradient_steps_per_iteration": 4, "train_batch_size_per_learner": 8}
    return {
        "algorithm": "DT",
        "offline_data": {"dataset": dataset},
        "rl_module": {"model_config": {"context_length": 4, "embed_dim": 16, "num_layers": 1}},
        "training": {**settings, **training},
        "evaluation": {"target_returns": "dataset:3", "episodes_per_target": 2, "evaluation_interval": 1},
    }


class StopAt:
    """An observer that presses Ctrl-C at a gradient step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, algorithm: Any) -> None:
        pass

    def stepped(self, gradient_step: int, loss: float) -> None:
        if gradient_step == self.step:
            signal.raise_signal(signal.SIGINT)

    def iterated(self, record: Mapping[str, Any]) -> None:
        pass
