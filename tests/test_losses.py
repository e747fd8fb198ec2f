from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrl_dt import losses

MASK = torch.tensor([[False, False, True, True], [True, True, True, True], [False, False, False, True]])


def batch(loss: str) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 4, 5, generator=generator)
    if loss == "cross_entropy":
        return losses.cross_entropy, predicted, torch.randint(5, (3, 4), generator=generator)
    return losses.masked_mse, predicted, torch.randn(3, 4, 5, generator=generator)


def test_mse_is_the_mean_over_real_steps_and_dimensions() -> None:
    loss, predicted, target = batch("mse")
    real = MASK.numpy()
    expected = np.mean((predicted.numpy()[real] - target.numpy()[real]) ** 2)
    assert loss(predicted, target, MASK).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_is_the_mean_log_likelihood_of_real_steps() -> None:
    loss, logits, target = batch("cross_entropy")
    log_likelihood = logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    expected = -log_likelihood[MASK].mean().item()
    assert loss(logits, target, MASK).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
@pytest.mark.parametrize("garbage", [1e6, -1e6, float("inf"), float("nan")])
def test_padding_moves_neither_loss_nor_gradient(name: str, garbage: float) -> None:
    loss, predicted, target = batch(name)
    results = []
    for values in (target, target.masked_fill(~MASK.reshape(3, 4, *[1] * (target.dim() - 2)), 0)):
        changed = values.clone()
        if values is not target:
            changed[~MASK] = torch.tensor(garbage).to(changed.dtype)
        leaf = predicted.clone().requires_grad_()
        value = loss(leaf, changed, MASK)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][~MASK] == 0).all()
    assert (results[1][1][MASK] != 0).any(dim=-1).all()


def test_a_garbled_prediction_of_padding_has_no_gradient() -> None:
    loss, predicted, target = batch("mse")
    leaf = predicted.masked_fill(~MASK[..., None], torch.inf).requires_grad_()
    value = loss(leaf, target, MASK)
    value.backward()
    assert value.item() == loss(predicted, target, MASK).item()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_long_windows_weigh_more(name: str) -> None:
    loss, predicted, target = batch(name)
    rows = [loss(predicted[i : i + 1], target[i : i + 1], MASK[i : i + 1]) for i in range(3)]
    expected = sum(value * count for value, count in zip(rows, (2, 4, 1), strict=True)) / 7
    torch.testing.assert_close(loss(predicted, target, MASK), expected)


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_bf16_predictions_are_judged_in_fp32(name: str) -> None:
    loss, predicted, target = batch(name)
    value = loss(predicted.bfloat16(), target, MASK)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(predicted, target, MASK).item(), rel=0.02)


def test_an_impossible_action_at_a_real_step_is_an_error() -> None:
    loss, logits, target = batch("cross_entropy")
    target[1, 1] = 5
    with pytest.raises(IndexError):
        loss(logits, target, MASK)
