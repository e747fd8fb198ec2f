"""LAMB against its definition (methods: online finetuning, sections 1.3 and 9)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayrl_dt.algorithms.online.lamb import Lamb

SHAPES = ((4, 3), (4,), (2, 3, 2), ())


def tensors(seed: int = 0, scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(scale * torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(weights: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for weight in weights:
        weight.grad = scale * torch.randn(weight.shape, generator=generator)


def by_definition(
    weight: np.ndarray[Any, Any], gradients: list[np.ndarray[Any, Any]], lr: float, decay: float
) -> np.ndarray[Any, Any]:
    """A tensor after LAMB steps, in float64, written from the equations."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for count, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        u = (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8) + decay * weight
        ratio = np.sqrt(np.sum(weight**2)) / np.sqrt(np.sum(u**2)) if decay else 1.0
        weight = weight - lr * ratio * u
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_follow_the_equations(decay: float) -> None:
    weights = tensors()
    start = [weight.detach().double().numpy().copy() for weight in weights]
    optimizer = Lamb(weights, lr=0.05, weight_decay=decay)
    history: list[list[np.ndarray[Any, Any]]] = [[] for _ in weights]
    for step in range(12):
        set_gradients(weights, step)
        for past, weight in zip(history, weights, strict=True):
            past.append(weight.grad.double().numpy())
        optimizer.step()
    for first, past, weight in zip(start, history, weights, strict=True):
        np.testing.assert_allclose(
            weight.detach(), by_definition(first, past, 0.05, decay), rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("gradient_scale", [1e-3, 1e3])
@pytest.mark.parametrize("decay", [1e-4, 0.5])
def test_a_step_is_lr_times_the_length_of_each_tensor(gradient_scale: float, decay: float) -> None:
    weights = [weight for index in range(3) for weight in tensors(index, scale=10.0**index)]
    optimizer = Lamb(weights, lr=0.01, weight_decay=decay)
    for step in range(3):
        before = [weight.detach().clone() for weight in weights]
        set_gradients(weights, step, gradient_scale)
        optimizer.step()
        for old, new in zip(before, weights, strict=True):
            assert (new.detach() - old).norm().item() == pytest.approx(0.01 * old.norm().item(), rel=2e-3)


def test_without_decay_it_is_adam() -> None:
    """As in the released code, whose trust ratio needs a weight decay."""
    weights, others = tensors(), tensors()
    lamb, adam = Lamb(weights, lr=0.05), torch.optim.Adam(others, lr=0.05)
    for step in range(50):
        for tensor, optimizer in ((weights, lamb), (others, adam)):
            set_gradients(tensor, step)
            optimizer.step()
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_tensor_of_zeros_takes_adams_step() -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    weight.grad = torch.tensor([[1.0, -2.0], [3.0, -4.0], [0.5, 0.0]])
    Lamb([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), -0.1 * weight.grad.sign())


def test_an_update_of_zeros_leaves_the_tensor() -> None:
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))]
    for weight in weights:
        weight.grad = torch.zeros(3)
    Lamb(weights, lr=0.1).step()
    Lamb(weights[1:], lr=0.1, weight_decay=1e-4).step()
    assert torch.equal(weights[0], torch.ones(3)) and torch.equal(weights[1], torch.zeros(3))


def test_decay_pulls_along_the_tensor_without_any_gradient() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.zeros(2)
    Lamb([weight], lr=0.1, weight_decay=1e-4).step()
    # The decay enters before the trust ratio, so its size does not matter where it is alone.
    torch.testing.assert_close(weight.detach(), torch.tensor([2.7, 3.6]))


def test_tensors_without_a_gradient_stay_and_start_later() -> None:
    weights = tensors()
    optimizer = Lamb(weights, lr=0.1)
    still = weights[0].detach().clone()
    for step in range(3):
        set_gradients(weights, step)
        weights[0].grad = None
        optimizer.step()
    assert torch.equal(weights[0], still)
    set_gradients(weights, 3)
    gradient = weights[0].grad.double().numpy()
    optimizer.step()
    expected = by_definition(still.double().numpy(), [gradient], 0.1, 0.0)
    np.testing.assert_allclose(weights[0].detach(), expected, rtol=1e-5, atol=1e-6)


def test_groups_have_settings_of_their_own() -> None:
    weights = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))]
    optimizer = Lamb([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.0}], lr=0.1)
    for weight in weights:
        weight.grad = torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), torch.full((4,), 0.9))
    assert torch.equal(weights[1], torch.ones(4))
    optimizer.param_groups[1]["lr"] = 0.2
    optimizer.step()
    torch.testing.assert_close(weights[1].detach(), torch.full((4,), 0.8))


def through_arrays(values: Any) -> Any:
    """What RLlib makes of an optimizer's state between saving and loading."""
    if isinstance(values, dict):
        return {name: through_arrays(value) for name, value in values.items()}
    return torch.from_numpy(np.array(values.numpy() if isinstance(values, Tensor) else values))


@pytest.mark.parametrize("arrays", [False, True])
def test_a_resumed_run_equals_one_without_interruption(arrays: bool) -> None:
    weights = tensors()
    optimizer = Lamb(weights, lr=0.02, weight_decay=0.01)
    for step in range(5):
        set_gradients(weights, step)
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    if arrays:
        saved["state"] = through_arrays(saved["state"])
    others = copy.deepcopy(weights)
    resumed = Lamb(others, lr=9.0)
    resumed.load_state_dict(saved)
    fresh = copy.deepcopy(weights)
    forgetful = Lamb(fresh, lr=0.02, weight_decay=0.01)
    for step in range(5, 10):
        for run, its in ((optimizer, weights), (resumed, others), (forgetful, fresh)):
            set_gradients(its, step)
            run.step()
    for one, other, forgotten in zip(weights, others, fresh, strict=True):
        assert torch.equal(one, other)
        # One number moves by lr times itself, up or down: its moments matter for the sign alone.
        assert one.dim() == 0 or not torch.equal(one, forgotten), "the state did not matter"
    for one, other in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert one["step"] == other["step"] == 10
        assert torch.equal(one["exp_avg"], other["exp_avg"])
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])


def test_a_closure_is_called_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = Lamb([weight], lr=0.1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"eps": -1e-8},
        {"weight_decay": -1.0},
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        Lamb(tensors(), **options)
