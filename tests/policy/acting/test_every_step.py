"""Outputs at every step without gradients, against the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import build_model
from torch import Tensor

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.decision_transformer import TransformerTrunk
from rayrl_dt.policy.acting.every_step import outputs_at_every_step
from rayrl_dt.policy.acting.layers import attention_weights
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
B, K, S, A = 5, 6, 3, 2


def make_window(*, padded: bool) -> Window[Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(B, K, dtype=torch.bool)
    if padded:
        mask[0, :3] = False
        mask[1, :5] = False
    return Window(
        returns_to_go=10 * torch.rand(B, K, 1, generator=generator),
        observations=torch.randn(B, K, S, generator=generator),
        actions=torch.rand(B, K, A, generator=generator) * 2 - 1,
        timesteps=torch.arange(K).expand(B, K).contiguous(),
        mask=mask,
    )


CASES: dict[str, dict[str, Any]] = {
    "one head": {"num_heads": 1, "num_layers": 3},
    "many heads": {"num_heads": 4},
    "one layer": {"num_heads": 1, "num_layers": 1},
    "without returns": {"backbone": "no-return", "num_heads": 1},
    "Gaussian": {"head": "gaussian"},
    "gelu": {"activation": "gelu"},
    "another trunk": {"backbone": "radt"},
}


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_model_s(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, case: str, padded: bool
) -> None:
    model, window = build_model(make_store(), **CASES[case]), make_window(padded=padded)
    with torch.no_grad():
        expected = model(window)
    monkeypatch.setattr(TransformerTrunk, "forward", None)  # neither called nor needed
    found = outputs_at_every_step(model, window, "fp32")
    assert not found.requires_grad and found.shape == expected.shape
    assert expected[window.mask].std() > 0.1
    torch.testing.assert_close(found[window.mask], expected[window.mask], rtol=1e-4, atol=1e-5)
    rough = outputs_at_every_step(model, window, "bf16").float()
    error = (rough - expected)[window.mask].abs()
    assert 0 < error.mean() < 0.1 * expected[window.mask].abs().mean()


@pytest.mark.parametrize("tokens", [3, 15, 16])
def test_attention_weights_are_a_softmax(tokens: int) -> None:
    """However many rows there are, and however short they are."""
    query, key = torch.randn(2, 600, tokens, 4, generator=torch.Generator().manual_seed(0))
    bias = torch.full((1, tokens, tokens), -torch.inf).triu_(1)
    found = attention_weights(200 * query, key, bias)  # large scores, whose exponentials overflow
    torch.testing.assert_close(found, (200 * query @ key.mT + bias).softmax(dim=-1))
    torch.testing.assert_close(found[:2], attention_weights(200 * query[:2], key[:2], bias))


def test_it_follows_the_weights_and_lets_hooks_listen(make_store: MakeStore) -> None:
    model, window = build_model(make_store()), make_window(padded=False)
    before = outputs_at_every_step(model, window, "fp32")
    with torch.no_grad():
        model.trunk.blocks[0].mlp.expand.weight.mul_(0.5)
        expected = model(window)
    after = outputs_at_every_step(model, window, "fp32")
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 1e-3
    seen: list[Any] = []
    handle = model.trunk.blocks[1].register_forward_hook(lambda *_: seen.append(None))
    assert torch.equal(outputs_at_every_step(model, window, "fp32"), expected) and seen == [None]
    handle.remove()
