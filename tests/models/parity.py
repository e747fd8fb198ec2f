"""What parity tests of the backbones share: layers written out, dropout that can be told apart, and the comparison.

A parity test writes the forward pass of a backbone from its description alone, over the weights of a model, and holds
the model to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from builders import random_window
from torch import Tensor, nn

from rayrl_dt.models.dropout import Dropout
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

Scale = Callable[[str, Tensor], Tensor]
"""What stands in for the dropout layer of a name."""


class Written(ABC):
    """The forward pass of one model, from its named weights. Padding is not masked here: it is cut away."""

    def __init__(self, model: SequenceModel, scale: Scale) -> None:
        self.model = model
        self.weights = dict(model.named_parameters())
        self.config = model.spec.model
        self.scale = scale

    @abstractmethod
    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        """Of one episode's steps in a row, `(1, k, ...)`, in model units: features for actions, then what else."""

    def __call__(self, window: Window[Tensor]) -> list[tuple[Tensor, ...]]:
        """Of each row, for its real steps: outputs of the head, then what else `features` gives."""
        model, rows = self.model, []
        for row, real in enumerate(window.mask):
            observations = (window.observations[row, real] - model.observation_mean) / model.observation_std
            if self.config.head == "categorical":
                actions = window.actions[row, real] - model.spec.action_space.start
            else:
                scaled = (window.actions[row, real] - model.action_middle) / model.action_half
                actions = scaled.clamp(-1, 1)
            returns = window.returns_to_go[row, real] / model.spec.return_scale
            inputs = (returns, observations, actions, window.timesteps[row, real])
            features, *others = self.features(*(values[None] for values in inputs))
            outputs = self.linear("head", features)
            if self.config.head == "deterministic":
                outputs = torch.tanh(outputs)
            rows.append(tuple(x[0] for x in (outputs, *others)))
        return rows

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = torch.einsum("...i,oi->...o", x, self.weights[f"{name}.weight"])
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def embed(self, name: str, x: Tensor) -> Tensor:
        """Numbers through a linear layer, indices by the rows of a table."""
        return self.linear(name, x) if x.is_floating_point() else self.weights[f"{name}.weight"][x]

    def timestep(self, name: str, timesteps: Tensor) -> Tensor | float:
        """The vector of each step of the episode, nothing without a table."""
        table = self.weights.get(f"{name}.weight")
        return 0.0 if table is None else table[timesteps]

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        y = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
        if f"{name}.weight" not in self.weights:
            return y
        return y * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name: str, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, heads: int) -> Tensor:
        """Head by head, with the weights dropped, and through the output's projection."""
        outputs = []
        for each in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            scores = each[0] @ each[1].transpose(1, 2) / math.sqrt(each[0].shape[-1])
            weights = scores.masked_fill(~visible, -1e9).softmax(-1)
            outputs.append(self.scale(f"{name}.weight_dropout", weights) @ each[2])
        return self.linear(f"{name}.out", torch.cat(outputs, -1))

    def self_attention(self, name: str, x: Tensor, *, heads: int, causal: bool = True) -> Tensor:
        """Of a block: attention among the tokens, and the dropout of its residual branch."""
        visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        q, k, v = self.linear(f"{name}.attention.qkv", x).chunk(3, -1)
        attended = self.attend(f"{name}.attention", q, k, v, visible.tril() if causal else visible, heads)
        return self.scale(f"{name}.dropout", attended)

    def mlp(self, name: str, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        hidden = activation(self.linear(f"{name}.mlp.expand", x))
        return self.scale(f"{name}.mlp.dropout", self.linear(f"{name}.mlp.contract", hidden))

    def pre_norm_blocks(self, tokens: list[Tensor], timesteps: Tensor) -> Tensor:
        """The tokens of each step with its timestep, in turn, normed and dropped, then through all blocks."""
        x = torch.stack([t + self.timestep("trunk.embed_timestep", timesteps) for t in tokens], 2)
        x = self.scale("trunk.embed_dropout", self.norm("trunk.embed_norm", x.flatten(1, 2)))
        for number in range(self.config.num_layers):
            x = self.pre_norm_block(f"trunk.blocks.{number}", x, relu, heads=self.config.num_heads)
        return x

    def read_by_mlp(self, name: str, x: Tensor) -> Tensor:
        """What the feed-forward layer of a pre-norm block reads."""
        return self.norm(f"{name}.norm_mlp", x)

    def pre_norm_block(
        self,
        name: str,
        x: Tensor,
        activation: Callable[[Tensor], Tensor],
        *,
        heads: int,
        causal: bool = True,
    ) -> Tensor:
        """x + attention(LN x), then x + MLP(LN x)."""
        normed = self.norm(f"{name}.norm_attention", x)
        x = x + self.self_attention(name, normed, heads=heads, causal=causal)
        return x + self.mlp(name, self.read_by_mlp(name, x), activation)


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def check(
    written: type[Written],
    model: SequenceModel,
    run: Callable[[Window[Tensor]], tuple[Tensor, ...]],
    real: list[int],
) -> None:
    """Hold a model to a written forward, in float64: as it acts, and with each dropout layer a factor of its own.

    Args:
        written: the forward.
        model: in eval mode, with dropout above 0; changed.
        run: the model's own results at all steps of a window: actions, and what else `written` has.
        real: steps of each row of the window, the last ones.
    """
    model.double()
    window = random_window(model, real)
    floats = {name: getattr(window, name) for name in ("returns_to_go", "observations", "actions")}
    window = replace(window, **{k: v.double() for k, v in floats.items() if v.is_floating_point()})
    _same(written(model, lambda _, x: x)(window), run(window), window)
    scales = _dropout_as_scales(model)
    used: set[str] = set()

    def scale(name: str, x: Tensor) -> Tensor:
        used.add(name)
        return x * scales[name]

    _same(written(model, scale)(window), run(window), window)
    assert used == set(scales), "dropout layers of the model that the description does not have"


def _same(rows: list[tuple[Tensor, ...]], results: tuple[Tensor, ...], window: Window[Tensor]) -> None:
    for row, expected in enumerate(rows):
        for one, other in zip(expected, results, strict=True):
            found = other[row, window.mask[row, -other.shape[1] :]]
            torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


class _Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.p, self.scale = 0.1, scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _dropout_as_scales(model: SequenceModel) -> dict[str, float]:
    """Make each dropout layer multiply by a number of its own; return it by the layer's name."""
    names = [name for name, module in model.named_modules() if isinstance(module, Dropout)]
    scales = {name: 0.5 + 0.1 * (place % 7) for place, name in enumerate(names)}
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _Scaled(scales[name]))
    return scales
