"""Slow copies: how far they move, and that nothing but their memory changes."""

from __future__ import annotations

import copy

import torch
from builders import scramble
from torch import nn

from rayrl_dt.critics.slow_copy import OneVector, SlowCopy


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    network = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False))
    scramble(network)
    slow = copy.deepcopy(network).requires_grad_(False)
    scramble(slow, seed=1)
    return slow, network


def test_each_weight_moves_by_its_share() -> None:
    slow, network = networks()
    before, parameters = copy.deepcopy(slow.state_dict()), list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    copied = SlowCopy(slow, OneVector(network.parameters()))
    assert all(torch.equal(value, slow.state_dict()[name]) for name, value in before.items())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()  # the optimizer's weights are still the network's
    after = copy.deepcopy(network.state_dict())
    copied.move(0.25)
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * after[name])
        assert not torch.equal(value, before[name])
    assert all(torch.equal(value, after[name]) for name, value in network.state_dict().items())


def test_loaded_and_replaced_weights_are_followed() -> None:
    slow, network = networks()
    copied = SlowCopy(slow, OneVector(network.parameters()))
    slow.load_state_dict(network.state_dict())
    for parameter in network.parameters():
        parameter.data = parameter.data + 1.0  # elsewhere in memory, as after a move to another device
    before = copy.deepcopy(slow.state_dict())
    copied.move(0.5)
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.5)
