"""Return-Aligned Decision Transformer."""

from __future__ import annotations

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.config import SequenceConfig

__all__ = ["RADT", "RADTConfig"]


class RADTConfig(SequenceConfig):
    """Return-Aligned Decision Transformer (Tanaka et al. 2024, "Return-Aligned Decision Transformer").

    Decision Transformer whose layers consult the returns-to-go apart from states and actions, so that the achieved
    return follows the asked one. `rl_module(model_config={"use_seqra": False})`, `use_stepra` and `adaptive_scaling`
    switch its parts off; the objective, data and evaluation are those of `DTConfig`.

    Differences from the paper and its code: see `rayrl_dt.models.radt`. As with DT, the defaults take few steps at a
    higher learning rate than the authors' 1e-4.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or RADT)
        self.model_defaults = {"backbone": "radt"}


class RADT(SequenceAlgorithm):
    """The algorithm of `RADTConfig`."""

    @classmethod
    def get_default_config(cls) -> RADTConfig:
        """Return a `RADTConfig`."""
        return RADTConfig(algo_class=cls)
