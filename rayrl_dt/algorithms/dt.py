"""Decision Transformer."""

from __future__ import annotations

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.config import SequenceConfig

__all__ = ["DT", "DTConfig"]


class DTConfig(SequenceConfig):
    """Decision Transformer (Chen et al. 2021, "Decision Transformer: RL via Sequence Modeling").

    Predicts the action of each step from returns-to-go, states and earlier actions; mean squared error for
    continuous actions, cross-entropy for discrete ones.

    Differences from the paper and its code: see `rayrl_dt.models.decision_transformer`. The defaults take few
    steps at a higher learning rate (3e-4, 500 warm-up steps); the paper's are in `tune_configs/dt_paper.yaml`.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DT)
        self.model_defaults = {"backbone": "dt"}


class DT(SequenceAlgorithm):
    """The algorithm of `DTConfig`."""

    @classmethod
    def get_default_config(cls) -> DTConfig:
        """Return a `DTConfig`."""
        return DTConfig(algo_class=cls)
