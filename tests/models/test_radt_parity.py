"""RADT against a forward written from its description alone, with weights and dropout masks that matter.

The description: states and actions in one stream, embedded returns in another; each block attends to the stream
(SA), to the returns (SeqRA), and has an MLP. Keys of SeqRA know the position of a return, values do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_model, random_window
from torch import Tensor, nn

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.dropout import Dropout
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

K, WIDTH, HEADS = 6, 16, 2
MakeStore = Callable[..., TrajectoryStore]
Scale = Callable[[str, Tensor], Tensor]

PARTS = [
    {"use_seqra": seqra, "use_stepra": stepra, "adaptive_scaling": adaptive, "norm": norm}
    for norm in ("post", "pre")
    for seqra, stepra, adaptive in (
        (True, True, True),
        (True, True, False),
        (True, False, True),
        (True, False, False),
        (False, True, True),
    )
]


class Written:
    """The forward pass of one model, from its named weights."""

    def __init__(self, model: SequenceModel, scale: Scale) -> None:
        self.weights = dict(model.named_parameters())
        self.config = model.spec.model
        self.scale = scale

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = torch.einsum("...i,oi->...o", x, self.weights[f"{name}.weight"])
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str | None, x: Tensor, eps: float) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        y = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
        if name is None or f"{name}.weight" not in self.weights:
            return y
        return y * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name: str, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """Per head; weights and output dropped as the authors do."""
        heads = self.config.num_heads
        outputs = []
        for each in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            scores = each[0] @ each[1].transpose(1, 2) / math.sqrt(each[0].shape[-1])
            weights = scores.masked_fill(~visible, -1e4).softmax(-1)
            outputs.append(self.scale(f"{name}.weight_dropout", weights) @ each[2])
        return self.linear(f"{name}.out", torch.cat(outputs, -1))

    def __call__(self, model: SequenceModel, window: Window[Tensor]) -> Tensor:
        spec = model.spec
        observations = (window.observations - model.observation_mean) / model.observation_std
        actions = ((window.actions - model.action_middle) / model.action_half).clamp(-1, 1)
        steps = window.mask.shape[1]
        # Vaswani's sines and cosines of the episode's step, through a linear layer.
        pair = torch.arange(WIDTH // 2)
        angle = window.timesteps[..., None].double() / 10_000 ** (2 * pair / WIDTH)
        table = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
        p = self.linear("trunk.embed_position", table)
        c = self.linear("trunk.embed_return", window.returns_to_go / spec.return_scale)
        e_s = self.linear("trunk.embed_observation", observations)
        e_a = self.linear("trunk.embed_action", actions)
        x = torch.stack([e_s + p, e_a + p], 2).flatten(1, 2)
        token_step = torch.arange(2 * steps) // 2
        real = window.mask
        causal = torch.arange(2 * steps)[:, None] >= torch.arange(2 * steps)[None, :]
        visible = causal & real.repeat_interleave(2, 1)[:, None, :]
        sees_return = (token_step[:, None] >= torch.arange(steps)[None, :]) & real[:, None, :]
        for number in range(self.config.num_layers):
            x = self.block(f"trunk.blocks.{number}", x, c, p, visible, sees_return)
        return torch.tanh(self.linear("head", x[:, ::2]))

    def block(
        self, name: str, x: Tensor, c: Tensor, p: Tensor, visible: Tensor, sees_return: Tensor
    ) -> Tensor:
        config = self.config
        norms = 3 if config.use_seqra else 2
        chunks = (
            self.linear(f"{name}.modulation.project", c * torch.sigmoid(c))
            .repeat_interleave(2, 1)
            .chunk(2 * norms, -1)
            if config.use_stepra
            else None
        )

        def step_norm(place: int, values: Tensor) -> Tensor:
            normed = self.norm(f"{name}.norms.{place}", values, 1e-6)
            return normed if chunks is None else normed * (1 + chunks[2 * place]) + chunks[2 * place + 1]

        def self_attention(values: Tensor) -> Tensor:
            q, k, v = self.linear(f"{name}.attention.qkv", values).chunk(3, -1)
            attended = self.attend(f"{name}.attention", q, k, v, visible)
            return self.scale(f"{name}.dropout", attended)

        def seqra(query: Tensor, residual: Tensor) -> Tensor:
            cross = f"{name}.aligner.attention"
            q = self.linear(f"{cross}.query", query)
            k = self.linear(f"{cross}.key", self.norm(f"{cross}.norm_key", c + p, 1e-5))
            v = self.linear(f"{cross}.value", self.norm(f"{cross}.norm_value", c, 1e-5))
            z = self.attend(cross, q, k, v, sees_return)
            z = self.scale(f"{name}.aligner.dropout", z)
            if not config.adaptive_scaling:
                return residual + z
            scaling = self.linear(f"{name}.aligner.scaling", torch.cat([z, residual], -1))
            return residual + (1 + scaling) * z

        def mlp(values: Tensor) -> Tensor:
            hidden = self.linear(f"{name}.mlp.expand", values)
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            return self.scale(f"{name}.mlp.dropout", self.linear(f"{name}.mlp.contract", hidden))

        if config.norm == "post":
            x = step_norm(0, x + self_attention(x))
            if config.use_seqra:
                x = step_norm(1, seqra(x, x))
            return step_norm(norms - 1, x + mlp(x))
        x = x + self_attention(step_norm(0, x))
        if config.use_seqra:
            x = seqra(step_norm(1, x), x)
        return x + mlp(step_norm(norms - 1, x))


def no_dropout(name: str, x: Tensor) -> Tensor:
    return x


def dropout_as_scales(model: SequenceModel) -> Scale:
    """Makes each dropout layer multiply by a number of its own, and returns the same as a function of its name."""
    names = [name for name, module in model.named_modules() if isinstance(module, Dropout)]
    scales = {name: 0.5 + 0.1 * (place % 7) for place, name in enumerate(names)}

    class Scaled(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.p, self.scale = 0.1, scales[name]

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Scaled(name))
    unused = set(names)

    def scale(name: str, x: Tensor) -> Tensor:
        unused.discard(name)
        return x * scales[name]

    scale.unused = unused  # type: ignore[attr-defined]
    return scale


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts.values())))
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
def test_the_model_is_the_authors_radt(make_store: MakeStore, parts: dict[str, Any], real: list[int]) -> None:
    model = build_model(make_store(), backbone="radt", **parts).double()
    window = _double(random_window(model, real))
    with torch.no_grad():
        expected = Written(model, no_dropout)(model, window)
        torch.testing.assert_close(model(window)[window.mask], expected[window.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts.values())))
def test_dropout_stands_where_the_authors_have_it(make_store: MakeStore, parts: dict[str, Any]) -> None:
    model = build_model(make_store(), backbone="radt", dropout=0.1, **parts).double()
    window = _double(random_window(model, [K, 3]))
    scale = dropout_as_scales(model)
    with torch.no_grad():
        expected = Written(model, scale)(model, window)
        torch.testing.assert_close(model(window)[window.mask], expected[window.mask], rtol=1e-5, atol=1e-5)
    assert scale.unused == set(), "a dropout layer that the description does not have"  # type: ignore[attr-defined]


def test_values_do_not_know_the_position(make_store: MakeStore) -> None:
    """With keys of zero, all visible returns weigh alike; moving the whole window in time must change no value."""
    model = build_model(make_store(), backbone="radt")
    for block in model.trunk.blocks:
        for part in (block.aligner.attention.key, block.aligner.attention.query):
            nn.init.zeros_(part.weight)
    seen: list[Tensor] = []
    aligner = model.trunk.blocks[0].aligner.attention
    handle = aligner.register_forward_hook(lambda _, __, output: seen.append(output))
    window = random_window(model, [K, K])
    with torch.no_grad():
        model(window)
        model(replace(window, timesteps=window.timesteps + 3))
    handle.remove()
    torch.testing.assert_close(seen[0], seen[1])


def _double(window: Window[Tensor]) -> Window[Tensor]:
    names = ("returns_to_go", "observations", "actions")
    return replace(window, **{name: getattr(window, name).double() for name in names})
