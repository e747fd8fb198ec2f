"""Reinformer."""

from __future__ import annotations

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.config import SequenceConfig

__all__ = ["Reinformer", "ReinformerConfig"]


class ReinformerConfig(SequenceConfig):
    """Reinformer (Zhuang et al. 2024, "Reinformer: Max-Return Sequence Modeling for Offline RL").

    A sequence model that predicts, from each state, the highest return that the data show for it (expectile
    regression), and the action that goes with a return. When it acts, it predicts a return, then the action for that
    return: nobody asks it for one, so evaluations report what it achieves, and no alignment.

    The defaults are the form of Lin et al. 2025 (Action Gradient, section 5): a network each for returns and actions,
    and a context that grows while the predicted return falls. Reinformer's own is
    `rl_module(model_config={"shared_networks": True, "context_rule": "whole"})`.

    Differences from the papers and the code: see `rayrl_dt.models.reinformer`, and `rayrl_dt.policy.acting.predicted`
    for what the adaptive context leaves open. The action loss is that of the head, without an entropy term; AdamW
    stands for LAMB, and few steps at a higher learning rate for 50,000 at 1e-4 with 4 blocks of width 256. The context
    of 5 steps is the code's.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or Reinformer)
        self.model_defaults = {"backbone": "reinformer", "context_length": 5}


class Reinformer(SequenceAlgorithm):
    """The algorithm of `ReinformerConfig`."""

    @classmethod
    def get_default_config(cls) -> ReinformerConfig:
        """Return a `ReinformerConfig`."""
        return ReinformerConfig(algo_class=cls)
