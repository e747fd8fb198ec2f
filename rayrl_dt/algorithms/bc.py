"""Behavior cloning, %BC included."""

from __future__ import annotations

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.config import SequenceConfig

__all__ = ["BC", "BCConfig"]


class BCConfig(SequenceConfig):
    """Behavior cloning with an MLP on the current state (Decision Transformer's Gym baseline).

    %BC is `offline_data(top_percent=10)`. Transformer BC, the same network as DT without return tokens, is
    `rl_module(model_config={"backbone": "no-return", "context_length": 20})`.

    Differences from the released code: its default concatenates 20 states; plain BC sees one, as the paper says.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or BC)
        self.model_defaults = {"backbone": "mlp", "context_length": 1, "embed_dim": 256, "num_layers": 3}
        self.grad_clip = None


class BC(SequenceAlgorithm):
    """The algorithm of `BCConfig`."""

    @classmethod
    def get_default_config(cls) -> BCConfig:
        """Return a `BCConfig`."""
        return BCConfig(algo_class=cls)
