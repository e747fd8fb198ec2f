"""RADT against a forward written from its description alone, with weights and dropout masks that matter.

The description: states and actions in one stream, embedded returns in another; each block attends to the stream
(SA), to the returns (SeqRA), and has an MLP. Keys of SeqRA know the position of a return, values do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_model, random_window
from models.parity import Written, check, gelu
from torch import Tensor, nn

from rayrl_dt.data.store import TrajectoryStore

K, WIDTH = 6, 16
MakeStore = Callable[..., TrajectoryStore]

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


class RADT(Written):
    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        # Vaswani's sines and cosines of the episode's step, through a linear layer.
        angle = timesteps[..., None].double() / 10_000 ** (2 * torch.arange(WIDTH // 2) / WIDTH)
        table = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
        p = self.linear("trunk.embed_position", table)
        c = self.linear("trunk.embed_return", returns)
        e_s = self.linear("trunk.embed_observation", observations)
        e_a = self.embed("trunk.embed_action", actions)
        x = torch.stack([e_s + p, e_a + p], 2).flatten(1, 2)
        for number in range(self.config.num_layers):
            x = self.block(f"trunk.blocks.{number}", x, c, p)
        return (x[:, ::2],)

    def block(self, name: str, x: Tensor, c: Tensor, p: Tensor) -> Tensor:
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
            return self.self_attention(name, values, heads=config.num_heads)

        def seqra(query: Tensor, residual: Tensor) -> Tensor:
            cross = f"{name}.aligner.attention"
            q = self.linear(f"{cross}.query", query)
            k = self.linear(f"{cross}.key", self.norm(f"{cross}.norm_key", c + p))
            v = self.linear(f"{cross}.value", self.norm(f"{cross}.norm_value", c))
            sees_return = torch.arange(x.shape[1])[:, None] // 2 >= torch.arange(c.shape[1])
            z = self.attend(cross, q, k, v, sees_return, config.num_heads)
            z = self.scale(f"{name}.aligner.dropout", z)
            if not config.adaptive_scaling:
                return residual + z
            scaling = self.linear(f"{name}.aligner.scaling", torch.cat([z, residual], -1))
            return residual + (1 + scaling) * z

        if config.norm == "post":
            x = step_norm(0, x + self_attention(x))
            if config.use_seqra:
                x = step_norm(1, seqra(x, x))
            return step_norm(norms - 1, x + self.mlp(name, x, gelu))
        x = x + self_attention(step_norm(0, x))
        if config.use_seqra:
            x = seqra(step_norm(1, x), x)
        return x + self.mlp(name, step_norm(norms - 1, x), gelu)


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts.values())))
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
def test_the_model_is_the_authors_radt(make_store: MakeStore, parts: dict[str, Any], real: list[int]) -> None:
    model = build_model(make_store(), backbone="radt", dropout=0.1, **parts)
    check(RADT, model, lambda window: (model(window),), real)


def test_discrete_actions_are_embedded(make_store: MakeStore) -> None:
    model = build_model(make_store(actions=4, first_action=3), backbone="radt", dropout=0.1)
    check(RADT, model, lambda window: (model(window),), [K, 3])


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
