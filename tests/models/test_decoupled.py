"""The decoupled backbone against a forward written from its description alone, and what it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import build_model, random_window
from models.parity import Written, check, gelu
from torch import Tensor

from rayrl_dt import UserError
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.decoupled import MODULATIONS, DecoupledTrunk
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.imitation import imitation_loss

K = 6
MakeStore = Callable[..., TrajectoryStore]


class Decoupled(Written):
    """Tokens s and a with the timestep, LayerNorm, dropout, pre-norm blocks; then a norm that the return modulates."""

    def features(
        self, returns: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, ...]:
        tokens = [
            self.linear("trunk.embed_observation", observations),
            self.embed("trunk.embed_action", actions),
        ]
        asked = self.linear("trunk.modulation.0", returns)
        if self.config.modulation != "linear":
            asked = self.linear("trunk.modulation.2", gelu(asked))
        # With "block", two more for what the last feed-forward layer reads; then two for what comes out.
        *self.inside, scale, shift = asked.split(self.config.embed_dim, dim=-1)
        x = self.pre_norm_blocks(tokens, timesteps)
        return ((1 + scale) * self.norm("", x)[:, ::2] + shift,)

    def read_by_mlp(self, name: str, x: Tensor) -> Tensor:
        read = super().read_by_mlp(name, x)
        if self.inside and name.endswith(f".{self.config.num_layers - 1}"):
            scale, shift = (
                each.repeat_interleave(2, dim=1) for each in self.inside
            )  # of the state and the action
            read = (1 + scale) * read + shift
        return read


@pytest.mark.parametrize(
    ("config", "spaces"),
    [
        ({}, {}),
        ({"modulation": "mlp", "head": "gaussian"}, {}),
        ({"modulation": "block"}, {}),
        ({}, {"actions": 4, "first_action": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("real", [[K, K], [2, K]], ids=["full", "padded"])
def test_the_model_is_the_description(
    make_store: MakeStore, config: dict[str, Any], spaces: dict[str, int], real: list[int]
) -> None:
    model = build_model(make_store(**spaces), backbone="decoupled", dropout=0.1, **config)
    check(Decoupled, model, lambda window: (model(window),), real)


@pytest.fixture(params=MODULATIONS)
def model(make_store: MakeStore, request: pytest.FixtureRequest) -> SequenceModel:
    return build_model(make_store(), backbone="decoupled", modulation=request.param)


@torch.no_grad()
def test_the_trunk_sees_no_return_and_an_action_its_own_alone(model: SequenceModel) -> None:
    window = random_window(model, [K, K, 3])
    other = replace(window, returns_to_go=window.returns_to_go + 7.0)
    assert isinstance(model.trunk, DecoupledTrunk)
    assert torch.equal(model.trunk.context(model.inputs(window)), model.trunk.context(model.inputs(other)))
    before = model(window)
    for step in range(K):
        returns = window.returns_to_go.clone()
        returns[:, step] += 7.0
        moved = (model(replace(window, returns_to_go=returns)) - before).abs().amax(dim=(0, 2))
        assert moved[step] > 1e-3 and moved.sum() == moved[step]


def test_a_new_one_does_not_hang_on_its_return_before_the_first_step(make_store: MakeStore) -> None:
    for modulation in MODULATIONS:
        config = ModelConfig.from_dict(
            {"backbone": "decoupled", "context_length": K, "embed_dim": 16, "modulation": modulation}
        )
        model = SequenceModel(PolicySpec.from_store(config, make_store(), return_scale=None)).eval()
        window = random_window(model, [K, K])
        other = replace(window, returns_to_go=window.returns_to_go + 7.0)
        assert torch.equal(model(window), model(other))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(2):  # a hidden layer's first step moves its last weights alone
            torch.autograd.backward(imitation_loss(model, model(window), window))
            optimizer.step()
        assert (model(window) - model(other)).abs().max() > 1e-4


@torch.no_grad()
def test_many_returns_cost_one_forward_of_the_trunk(model: SequenceModel) -> None:
    window = random_window(model, [K, 2, 4])
    returns = torch.randn(5, *window.returns_to_go.shape) * 5
    calls = []
    model.trunk.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    for last_only in (False, True):
        calls.clear()
        found = model.outputs_for(window, returns, last_only=last_only)
        assert len(calls) == 1
        wanted = [model(replace(window, returns_to_go=each), last_only=last_only) for each in returns]
        torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "decoupled"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_elsewhere_several_returns_are_several_forwards(
    make_store: MakeStore, backbone: str, dropout: float
) -> None:
    """With the same dropout masks: what differs is what is asked for."""
    model = build_model(make_store(), backbone=backbone, dropout=dropout).train()
    window = random_window(model, [K, 2, 4])
    returns = torch.stack([window.returns_to_go, window.returns_to_go + 3.0, window.returns_to_go])
    model.reseed(3)
    found = model.outputs_for(window, returns)
    for each, output in zip(returns, found, strict=True):
        model.reseed(3)
        assert torch.equal(output, model(replace(window, returns_to_go=each)))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[1]) == (not BACKBONES[backbone].reads_returns)
    model.eval()
    with torch.no_grad():  # without masks all go through together
        wanted = torch.stack([model(replace(window, returns_to_go=each)) for each in returns])
        torch.testing.assert_close(model.outputs_for(window, returns), wanted, rtol=1e-5, atol=1e-5)


def test_a_modulation_is_the_decoupled_backbones() -> None:
    with pytest.raises(UserError, match="'mlp' is for backbone 'decoupled', not 'dt'"):
        ModelConfig(modulation="mlp")
    with pytest.raises(UserError, match="modulation is 'film'"):
        ModelConfig(backbone="decoupled", modulation="film")


def test_all_returns_are_asked_for_with_the_same_masks(make_store: MakeStore) -> None:
    """Where the return enters the last block, each course of returns has a feed-forward layer of its own."""
    model = build_model(make_store(), backbone="decoupled", modulation="block", dropout=0.4).train()
    window = random_window(model, [K, 2, 4])
    model.reseed(3)
    same = model.outputs_for(window, torch.stack([window.returns_to_go, window.returns_to_go]))
    assert torch.equal(same[0], same[1])
    model.reseed(3)
    torch.testing.assert_close(model(window), same[0], rtol=0, atol=1e-6)
